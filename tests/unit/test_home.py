"""Where things lie for a user that has no home folder, as a container's user by number."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_engine import EngineSettings, SettingsError
from shared_engine.cli.finding import Outcome
from shared_engine.cli.machine_checks import check_model_cache
from shared_engine.launch.interpreter import data_dir, remembered_default
from shared_engine.launch.spec import launch_environment
from shared_engine.machine.home import NOWHERE, caches, expanded, home
from shared_engine.machine.hub_cache import hub_cache
from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir, runtime_dir
from shared_engine.token_count import exported
from tests.support.paths import REPOSITORY


def scratch_of(directory: RuntimeDir, home: Path) -> Path:
    return Path(directory.scratch_environment({"HOME": str(home)})["TORCHINDUCTOR_CACHE_DIR"])


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither HOME nor an entry in the user database; in a folder that has one named ``~``, with what is not ours."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    trap = tmp_path / "~" / ".local" / "share" / "vllm-local" / "default-interpreter.json"
    trap.parent.mkdir(parents=True)
    trap.write_text('{"python": "/tmp/somebody-elses"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_home_is_the_environments_or_the_user_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwuid(os.getuid()).pw_dir
    assert [home({"HOME": "/of/mine"}), home({"HOME": ""}), home({})] == ["/of/mine", entry, entry]
    monkeypatch.setenv("HOME", "/of/mine")
    assert [expanded("~"), expanded("~/a"), expanded("a/~"), expanded(Path("/b"))] == [
        Path("/of/mine"), Path("/of/mine/a"), Path("a/~"), Path("/b"),
    ]  # fmt: skip
    assert [expanded("~", {"HOME": "/"}), expanded("~/a", {"HOME": "/"}), expanded("~/a", {"HOME": "/of/mine/"})] == [
        Path("/"), Path("/a"), Path("/of/mine/a"),
    ]  # fmt: skip
    assert expanded("~root") == Path(pwd.getpwnam("root").pw_dir)
    assert expanded("~nobody-by-this-name/a") == Path("~nobody-by-this-name/a")


@pytest.mark.parametrize(
    "place",
    [
        lambda: expanded("~/a"),
        caches,
        data_dir,
        lambda: hub_cache(os.environ),
        lambda: Path(EngineSettings(model="org/name", download_dir="~/weights").download_dir or ""),
        lambda: Path(EngineSettings(model="org/name", python="~/python").python or ""),
    ],
)
def test_without_a_home_nothing_is_looked_for_in_the_current_folder(homeless: Path, place: Callable[[], Path]) -> None:
    assert str(place()).startswith(f"{NOWHERE}/")


def test_without_a_home_nobody_elses_interpreter_is_taken(homeless: Path) -> None:
    assert remembered_default() is None


def test_without_a_home_settings_and_checks_say_what_is_missing(homeless: Path) -> None:
    assert EngineSettings(model="org/name").context_window() is None
    for model in ("~/model", "~nobody-by-this-name/model"):
        with pytest.raises(SettingsError, match="no such folder"):
            EngineSettings(model=model)
    with pytest.raises(SettingsError, match="no such folder"):
        EngineSettings(model="org/name", lora_adapters={"a": "~/adapter"})
    finding = check_model_cache(EngineSettings(model="org/name"))
    if os.getuid() != 0:  # who may make folders anywhere
        assert finding.outcome is Outcome.WARN
        with pytest.raises(OSError, match=NOWHERE):
            exported._folder()


def test_without_a_home_engines_have_one_that_is_private(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "root"))
    environment = launch_environment({"LANG": "C"})
    assert environment == {"LANG": "C", "HOME": str(tmp_path / "root" / "home")}
    assert caches(environment) == tmp_path / "root" / "home" / ".cache"


def test_what_torch_compiles_is_kept_in_the_home_or_where_that_cant_be_written_goes_with_the_engine(
    tmp_path: Path,
) -> None:
    directory = runtime_dir("0" * 16)
    assert scratch_of(directory, tmp_path) == tmp_path / ".cache" / "vllm-local" / "torchinductor"
    assert scratch_of(directory, Path("/proc")) == directory.scratch / "torchinductor", "not even root can make it"


def test_with_a_home_engines_have_the_users() -> None:
    assert launch_environment({"HOME": "/home/me"}) == {"HOME": "/home/me"}


def test_no_code_looks_for_the_home_by_itself() -> None:
    """Path.expanduser raises where there is none, and os.path.expanduser leaves a relative path."""
    found = [path.name for path in (REPOSITORY / "shared_engine").rglob("*.py") if ".expanduser(" in path.read_text()]
    assert found == ["home.py"]
