"""Settings from config files: which value wins, what is refused, and that an error says where a value came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings, SettingsError
from shared_engine.config_files import default_files, read_files
from shared_engine.machine.hub_cache import hub_cache
from shared_engine.setting_sources import collect, misspelt
from shared_engine.settings import SETTINGS


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a home of its own for config files."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_argument_wins_over_the_environment_the_project_and_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = "model = 'org/{0}'\ndtype = '{1}'\nmax_retries = {2}\nidle_ttl_s = {3}\n"
    written(folder / "config/vllm-local/config.toml", everything.format("user", "float32", 7, 70) + "pinned = true")
    written(folder / "vllm-local.toml", everything.format("project", "half", 6, 60))
    monkeypatch.setenv("VLLM_MAX_RETRIES", "5")
    monkeypatch.setenv("VLLM_MODEL_PATH", "org/environment")
    settings = EngineSettings.from_file(model="org/argument")
    assert (settings.model, settings.max_retries, settings.idle_ttl_s, settings.pinned) == (
        "org/argument",
        5,
        60,
        True,
    )
    assert settings.dtype == "half"
    sources = {name: given.source for name, given in collect(SETTINGS, {}).items()}
    assert sources == {
        "model": "VLLM_MODEL_PATH",
        "max_retries": "VLLM_MAX_RETRIES",
        "dtype": "vllm-local.toml",
        "idle_ttl_s": "vllm-local.toml",
        "pinned": str(folder / "config/vllm-local/config.toml"),
    }


def test_files_that_are_named_are_read_instead_and_the_first_wins(folder: Path) -> None:
    written(folder / "vllm-local.toml", "model = 'org/project'\npinned = true")
    first = written(folder / "first.toml", "model = 'org/first'\n[engine_args]\nmax_num_seqs = 4")
    second = written(folder / "second.toml", "model = 'org/second'\nmax_retries = 1")
    settings = EngineSettings.from_file(first, str(second))
    assert (settings.model, settings.max_retries, settings.pinned) == ("org/first", 1, False)
    assert settings.engine_args == {"max_num_seqs": 4}


def test_without_files_they_are_settings_as_ever(folder: Path) -> None:
    assert EngineSettings.from_file(model="org/name") == EngineSettings(model="org/name")
    assert default_files({"XDG_CONFIG_HOME": str(folder)}) == ()


def test_a_user_without_a_home_has_no_file_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_user(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", no_user)
    assert default_files({}) == ()
    assert hub_cache({}).name == "hub"
    assert EngineSettings.from_file(model="org/name").model_folder() is None


def test_a_path_that_begins_with_a_dot_is_beside_its_file(folder: Path) -> None:
    file = written(
        folder / "somewhere/my.toml",
        "model = './model'\npython = '../python'\n[lora_adapters]\nsql = './sql'\nhub = 'org/adapter'",
    )
    values = {name: given.value for name, given in read_files([file]).items()}
    assert values == {
        "model": str(folder / "somewhere/model"),
        "python": str(folder / "python"),
        "lora_adapters": {"sql": str(folder / "somewhere/sql"), "hub": "org/adapter"},
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_modle_len = 5", "unknown setting 'max_modle_len'; did you mean 'max_model_len'? (in {file})"),
        ("max_model_len = 'long'", "max_model_len (from {file}) = 'long': must be a number of tokens"),
        ("temperature = -1", "temperature (from {file}) = -1: "),
        ("proxy_auth = 5", "proxy_auth (from {file}): "),
        ("model = '/no/such'", "model = '/no/such': no such folder (/no/such) (model from {file})"),
        (
            "mode = 'remote'",
            "mode='remote' needs base_url=... (or VLLM_API_URL), such as http://127.0.0.1:8000/v1 (mode from {file})",
        ),
        ("model", "the config file {file} is not TOML: "),
        (b"model = '\xff'", "the config file {file} is not TOML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(folder: Path, text: str | bytes, told: str) -> None:
    file = folder / "my.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as failed:
        EngineSettings.from_file(file, **{} if "model" in str(text)[:6] else {"model": "org/name"})
    assert told.format(file=file) in str(failed.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("VLLM_IDLE_TTL_S", "VLLM_IDLE_TTL_SECONDS"),  # as the setting is called
        ("VLLM_MODEL", "VLLM_MODEL_PATH"),
        ("VLLM_BASE_URL", "VLLM_API_URL"),
        ("VLLM_MAX_MODEL_LENGTH", "VLLM_MAX_MODEL_LEN"),
        ("VLLM_DEFAULT_TEMPRATURE", "VLLM_DEFAULT_TEMPERATURE"),
        ("VLLM_MODEL_PATH", None),
        ("VLLM_LOCAL_RUNTIME_DIR", None),
        ("VLLM_CACHE_ROOT", None),  # vLLM's own
        ("IDLE_TTL_S", None),
    ],
)
def test_a_variable_that_nothing_reads_is_found_with_the_one_that_may_be_meant(name: str, meant: str | None) -> None:
    assert misspelt(SETTINGS, [name]) == ({} if meant is None else {name: meant})


def test_a_file_that_is_named_must_be_there(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"the config file .*none\.toml can't be read: No such file"):
        EngineSettings.from_file(folder / "none.toml")


def test_a_file_that_others_may_write_is_not_read(folder: Path) -> None:
    file = written(folder / "vllm-local.toml", "model = 'org/name'")
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="is writable for everybody, so it is not read"):
        EngineSettings.from_file()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_read(folder: Path) -> None:
    os.chown(written(folder / "vllm-local.toml", "model = 'org/name'"), 12345, -1)
    with pytest.raises(SettingsError, match="belongs to user 12345, so it is not read"):
        EngineSettings.from_file()


URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("values", "environment", "text", "base_url", "modes"),
    [
        ({"mode": "local"}, {}, f"base_url = '{URL}'", None, ("local",)),
        ({}, {"VLLM_MODE": "local"}, f"base_url = '{URL}'", None, ("local",)),
        ({"base_url": URL}, {}, "mode = 'local'", URL, ("remote",)),
        ({}, {"VLLM_API_URL": URL}, "mode = 'direct'", URL, ("remote",)),
        ({"mode": "local", "fallback": ("remote",)}, {}, f"base_url = '{URL}'", URL, ("local", "remote")),
        ({"mode": "auto"}, {}, f"base_url = '{URL}'", URL, ("direct", "local", "remote")),
        ({"mode": "direct"}, {}, "python = '/usr/bin/other'", None, ("direct",)),
    ],
)
def test_where_requests_go_is_decided_by_the_higher_of_two_that_contradict(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    environment: dict[str, str],
    text: str,
    base_url: str | None,
    modes: tuple[str, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    written(folder / "vllm-local.toml", text)
    settings = EngineSettings.from_file(model="org/name", **values)
    assert (settings.base_url, settings.modes) == (base_url, modes)
