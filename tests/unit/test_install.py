"""vllm-local install: what it does on disk, with pip and the import of vLLM stood in for by scripts.

The real install is what `make test` begins with; here are the ways it can go wrong.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from shared_engine.cli.main import main
from shared_engine.errors import InstallError
from shared_engine.launch import install as install_module
from shared_engine.launch.install import MARK, REQUIREMENT, Build, install
from shared_engine.launch.interpreter import default_file, remember_default, remembered_default
from shared_engine.machine.nvidia import Driver
from shared_engine.vllm_versions import INSTALLED as VLLM_VERSION
from tests.support.interpreters import add_torch
from tests.support.paths import REPOSITORY

H200 = Driver("580.65.06", 0, ("NVIDIA H200",), 0, 0, (13, 0), 1)


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "vllm-local"


class Commands:
    """Stands in for running commands; each that contains ``fails`` fails as pip would."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails = ""
        self.output = ""
        self.torch = ("", "")
        """Version and other values of the torch that pip brings."""

    def run(self, command: list[str], log: Path, failure: str, say: object = None) -> None:
        line = " ".join(command)
        self.ran.append(line)
        if "venv" in line:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.unlink(missing_ok=True)
            python.symlink_to(sys.executable)
            (Path(command[-1]) / "pyvenv.cfg").touch()
        if "pip install" in line and self.torch[0]:
            prefix = Path(command[0]).parent.parent
            (prefix / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)
            add_torch(prefix, *self.torch)
        if self.fails and self.fails in line:
            log.write_text(self.output)
            raise InstallError(f"{failure}: {line}")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(install_module, "_run", commands.run)
    return commands


@pytest.mark.slow
def test_it_makes_checks_and_remembers_the_environment(commands: Commands, own_data_dir: Path) -> None:
    said: list[str] = []
    python = install("cpu", None, said.append)
    assert python == str(own_data_dir / f"engine-cpu-{VLLM_VERSION}" / "bin" / "python")
    assert remembered_default() == python
    assert any(REQUIREMENT["cpu"] in line for line in commands.ran)
    assert "import vllm" in commands.ran[-1]
    assert any("making an environment" in line for line in said)


@pytest.mark.slow
def test_torch_packages_that_do_not_fit_are_removed(commands: Commands) -> None:
    install("cpu", None, lambda _: None)  # this interpreter has no torchvision: importing it fails
    assert any("uninstall --yes torchvision torchaudio torchcodec" in line for line in commands.ran)


@pytest.mark.slow
def test_the_second_time_is_a_look_at_a_file(commands: Commands) -> None:
    install("cpu", None, lambda _: None)
    commands.ran.clear()
    said: list[str] = []
    install("cpu", None, said.append)
    assert not commands.ran
    assert "already" in said[0]


@pytest.mark.slow
def test_an_install_that_was_cut_off_is_made_anew(commands: Commands, tmp_path: Path) -> None:
    commands.fails = REQUIREMENT["cpu"]
    with pytest.raises(InstallError):
        install("cpu", tmp_path / "env", lambda _: None)
    assert remembered_default() is None
    commands.fails = ""
    install("cpu", tmp_path / "env", lambda _: None)
    assert (tmp_path / "env" / MARK).is_file()


def earlier(folder: Path, version: str) -> str:
    """An environment as an earlier release has made it; its interpreter."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (folder / "pyvenv.cfg").touch()
    (folder / MARK).write_text(json.dumps({"build": "cpu", "vllm": version}))
    remember_default(str(python))
    return str(python)


@pytest.mark.slow
def test_another_version_of_vllm_leaves_the_one_before_alone(commands: Commands, own_data_dir: Path) -> None:
    old, said = earlier(own_data_dir / "engine-cpu", "0.1.0"), list[str]()
    commands.fails = REQUIREMENT["cpu"]
    with pytest.raises(InstallError):
        install("cpu", None, said.append)
    assert remembered_default() == old, "it works, and engines may run with it"
    commands.fails = ""
    python = install("cpu", None, said.append)
    assert (python, remembered_default()) == (
        str(own_data_dir / f"engine-cpu-{VLLM_VERSION}" / "bin" / "python"),
        python,
    )
    assert Path(old).exists()
    assert said[-1] == f"{own_data_dir / 'engine-cpu'} is kept for what still runs with it: delete it when nothing does"


def test_an_environment_of_an_earlier_release_with_the_same_vllm_is_used(
    commands: Commands, own_data_dir: Path
) -> None:
    old = earlier(own_data_dir / "engine-cpu", VLLM_VERSION)
    assert install("cpu", None, lambda _: None) == old
    assert not commands.ran


@pytest.mark.slow
def test_a_folder_that_holds_another_version_is_not_cleared(commands: Commands, tmp_path: Path) -> None:
    python = earlier(tmp_path / "env", "0.1.0")
    with pytest.raises(
        InstallError, match=r"env holds vLLM 0\.1\.0 \(cpu build\), which engines may run with: delete it"
    ):
        install("cpu", tmp_path / "env", lambda _: None)
    assert Path(python).exists()
    Path(python).unlink()  # nothing runs with it any more
    install("cpu", tmp_path / "env", lambda _: None)


def test_an_environment_that_somebody_else_has_made_is_not_cleared(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    with pytest.raises(InstallError, match="holds other files"):
        install("cpu", tmp_path / "env", lambda _: None)
    assert not commands.ran


@pytest.mark.slow
def test_a_note_of_the_default_that_can_not_be_read_is_written_again(commands: Commands, own_data_dir: Path) -> None:
    own_data_dir.mkdir(parents=True)
    default_file().write_text("{")
    assert install("cpu", None, lambda _: None) == remembered_default()


@pytest.mark.slow
def test_without_a_cpu_build_of_torch_in_the_index_uv_is_asked(commands: Commands, tmp_path: Path) -> None:
    commands.fails = f"off {REQUIREMENT['cpu']}"
    commands.output = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    install("cpu", tmp_path / "env", lambda _: None)
    assert any(
        f"uv pip install --python {tmp_path}/env/bin/python --torch-backend cpu" in line for line in commands.ran
    )


@pytest.mark.parametrize("has_log", [False, True])
def test_a_folder_with_other_files_is_never_cleared(has_log: bool, commands: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "vllm"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    if has_log:
        (tmp_path / "vllm.log").touch()
    with pytest.raises(InstallError, match="holds other files"):
        install("cpu", folder, lambda _: None)
    assert (folder / "thesis.txt").exists()
    assert not commands.ran


@pytest.mark.slow
def test_two_at_once_wait_for_each_other(commands: Commands, tmp_path: Path) -> None:
    threads = [threading.Thread(target=install, args=("cpu", tmp_path / "env", lambda _: None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum("-m venv" in line for line in commands.ran) == 1


def test_a_command_that_fails_is_shown_with_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(InstallError) as caught:
        install_module._run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log", "no luck")
    for part in ("no luck", sys.executable, "  | why"):
        assert part in str(caught.value)


@pytest.mark.slow
def test_what_takes_minutes_shows_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_module, "SILENCE_S", 0.2)
    wheel = "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"
    lines = [f"  Downloading {wheel} (1.7 MB)", "WARNING: a place is ignored", "  Attempting uninstall: six", ""]
    code = f"import time; print({chr(10).join(lines)!r}, flush=True); time.sleep(1)"
    said: list[str] = []
    install_module._run([sys.executable, "-c", code], tmp_path / "log", "no luck", said.append)
    assert re.fullmatch(r"  \d+ s: Downloading numpy-2\.4\.6 \(1\.7 MB\)", said[-1])


@pytest.mark.slow
def test_the_command_line(commands: Commands, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["install", "--cpu", "--path", str(tmp_path / "env")]) == 0
    told = capsys.readouterr().out
    assert "engines will run with" in told
    assert told.splitlines()[-1].startswith("now ask a model: vllm-local run ")
    commands.fails = "venv"
    assert main(["install", "--cpu", "--path", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.startswith("vllm-local: could not make a virtual environment")
    with pytest.raises(SystemExit) as caught:
        main(["install", "--cpu", "--cuda"])
    assert caught.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "build", "why"),
    [
        (Driver(), "cpu", "no usable GPU: this machine has no NVIDIA driver"),
        (None, "cpu", "no usable GPU: this machine has no NVIDIA driver"),
        (H200, "cuda", "there is a GPU: NVIDIA H200"),
        (replace(H200, release="535.1", cuda=(12, 2)), "cpu", "the NVIDIA driver 535.1 is too old: it runs CUDA 12.2"),
    ],
)
def test_the_build_that_fits_is_told_with_its_reason(
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    driver: Driver | None,
    build: str,
    why: str,
) -> None:
    seen: dict[str, str] = {}

    def ask(python: str, environment: dict[str, str]) -> Driver | None:
        seen.update(environment)
        return driver

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setattr(install_module, "ask_driver", ask)
    assert main(["install"]) == 0
    assert capsys.readouterr().out.startswith(f"the {build.upper()} build fits this machine ({why}")
    assert seen
    assert "CUDA_VISIBLE_DEVICES" not in seen, "of one shell; the environment is for all apps"


@pytest.mark.slow
def test_a_cuda_build_that_will_not_run_here_is_made_all_the_same(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_module, "ask_driver", lambda *_: Driver())
    assert main(["install", "--cuda"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("the CUDA build will not run on this machine (no usable GPU: this machine has no NVIDIA")
    assert f"engine-cuda-{VLLM_VERSION}/bin/python" in told


@pytest.mark.slow
def test_the_default_that_every_install_sets_is_told(commands: Commands, tmp_path: Path) -> None:
    said: list[str] = []
    python = install("cpu", tmp_path / "elsewhere", said.append)
    assert said[-1] == f"engines will run with {python}, where no python=... (VLLM_PYTHON) names another"
    assert remembered_default() == python


# ---- torch


@pytest.mark.parametrize(
    ("build", "version", "cuda", "words"),
    [
        ("cuda", "2.13.0", "'13.0'", None),
        ("cpu", "2.13.0+cpu", "None", None),
        (
            "cuda",
            "2.13.0+cpu",
            "None",
            r"a CPU build of torch, 2\.13\.0\+cpu, for the CUDA build of vLLM, which .* offers",
        ),
        ("cpu", "2.13.0", "'13.0'", r"a CUDA build of torch, 2\.13\.0, for the CPU build of vLLM"),
    ],
)
@pytest.mark.slow
def test_another_build_of_torch_is_told_before_vllm_is_tried(
    commands: Commands, tmp_path: Path, build: Build, version: str, cuda: str, words: str | None
) -> None:
    commands.torch = (version, f"cuda: Optional[str] = {cuda}")
    if words is None:
        install(build, tmp_path / "env", lambda _: None)
        return
    with pytest.raises(InstallError, match=words) as caught:
        install(build, tmp_path / "env", lambda _: None)
    assert "\n" not in str(caught.value)
    assert not any("import vllm" in line for line in commands.ran)
    assert remembered_default() is None


@pytest.mark.slow
def test_the_places_that_pip_looks_at_are_named_without_passwords(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "https://me:pass@host/wheels")
    commands.torch = ("2.13.0+cpu", "cuda: Optional[str] = None")
    with pytest.raises(InstallError, match=r"find-links='https://\*\*\*@host/wheels'"):
        install("cuda", tmp_path / "env", lambda _: None)


@pytest.mark.slow
def test_cpu_builds_of_torch_are_ruled_out_for_the_cuda_build(commands: Commands, tmp_path: Path) -> None:
    install("cuda", tmp_path / "env", lambda _: None)
    constraints = tmp_path / "env" / "constraints.txt"
    assert any(f"--constraint {constraints} {REQUIREMENT['cuda']}" in line for line in commands.ran)
    excluded = constraints.read_text().splitlines()
    assert f"torch!={install_module.CUDA_TORCH['torch']}+cpu" in excluded
    commands.ran.clear()
    install("cpu", tmp_path / "other", lambda _: None)
    assert not any("--constraint" in line for line in commands.ran)


# ---- machines


def test_a_full_disk_is_told_before_the_download(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 30))
    with pytest.raises(InstallError, match=r"env has 1\.0 GiB free, and the CPU build takes 3\.4 GiB: make room, or"):
        install("cpu", tmp_path / "env", lambda _: None)
    assert not any("pip install" in line for line in commands.ran)


def test_other_systems_are_refused_in_plain_words(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["install"]) == 1
    assert "are for Linux: here only base_url=... works" in capsys.readouterr().err
    assert not commands.ran


def test_windows_is_refused_at_the_import() -> None:
    code = "import sys; sys.platform = 'win32'; import shared_engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.stderr.splitlines()[-1].startswith("ImportError: vllm-local does not run on Windows: install it inside")
