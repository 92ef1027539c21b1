"""vllm-local install: what it does on disk, with pip and the import of vLLM stood in for by scripts.

The real install is what `make test` begins with; here are the ways it can go wrong.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from shared_engine.cli.main import main
from shared_engine.errors import InstallError
from shared_engine.launch import install as install_module
from shared_engine.launch.install import MARK, REQUIREMENT, install
from shared_engine.launch.interpreter import remembered_default


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

    def run(self, command: list[str], log: Path, failure: str) -> None:
        line = " ".join(command)
        self.ran.append(line)
        if "venv" in line:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.unlink(missing_ok=True)
            python.symlink_to(sys.executable)
            (Path(command[-1]) / "pyvenv.cfg").touch()
        if self.fails and self.fails in line:
            log.write_text(self.output)
            raise InstallError(f"{failure}: {line}")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(install_module, "_run", commands.run)
    return commands


def test_it_makes_checks_and_remembers_the_environment(commands: Commands, own_data_dir: Path) -> None:
    said: list[str] = []
    python = install("cpu", None, said.append)
    assert python == str(own_data_dir / "engine-cpu" / "bin" / "python")
    assert remembered_default() == python
    assert any(REQUIREMENT["cpu"] in line for line in commands.ran)
    assert "import vllm" in commands.ran[-1]
    assert any("making an environment" in line for line in said)


def test_torch_packages_that_do_not_fit_are_removed(commands: Commands) -> None:
    install("cpu", None, lambda _: None)  # this interpreter has no torchvision: importing it fails
    assert any("uninstall --yes torchvision torchaudio torchcodec" in line for line in commands.ran)


def test_the_second_time_is_a_look_at_a_file(commands: Commands) -> None:
    install("cpu", None, lambda _: None)
    commands.ran.clear()
    said: list[str] = []
    install("cpu", None, said.append)
    assert not commands.ran
    assert "already" in said[0]


def test_an_install_that_was_cut_off_is_made_anew(commands: Commands, tmp_path: Path) -> None:
    commands.fails = REQUIREMENT["cpu"]
    with pytest.raises(InstallError):
        install("cpu", tmp_path / "env", lambda _: None)
    assert remembered_default() is None
    commands.fails = ""
    install("cpu", tmp_path / "env", lambda _: None)
    assert (tmp_path / "env" / MARK).is_file()


def test_another_version_of_vllm_is_made_anew(commands: Commands, tmp_path: Path) -> None:
    install("cpu", tmp_path / "env", lambda _: None)
    (tmp_path / "env" / MARK).write_text('{"build": "cpu", "vllm": "0.1.0"}')
    commands.ran.clear()
    install("cpu", tmp_path / "env", lambda _: None)
    assert commands.ran


def test_without_a_cpu_build_of_torch_in_the_index_uv_is_asked(commands: Commands, tmp_path: Path) -> None:
    commands.fails = f"off {REQUIREMENT['cpu']}"
    commands.output = "ERROR: No matching distribution found for torch==2.13.0+cpu"
    install("cpu", tmp_path / "env", lambda _: None)
    assert any(
        f"uv pip install --python {tmp_path}/env/bin/python --torch-backend cpu" in line for line in commands.ran
    )


def test_a_folder_with_other_files_is_never_cleared(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InstallError, match="holds other files"):
        install("cpu", tmp_path, lambda _: None)
    assert (tmp_path / "thesis.txt").exists()
    assert not commands.ran


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


def test_the_command_line(commands: Commands, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["install", "--cpu", "--path", str(tmp_path / "env")]) == 0
    assert "engines will run with" in capsys.readouterr().out
    commands.fails = "venv"
    assert main(["install", "--cpu", "--path", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.startswith("vllm-local: could not make a virtual environment")
    with pytest.raises(SystemExit) as caught:
        main(["install", "--cpu", "--cuda"])
    assert caught.value.code == 2


def test_no_gpu_means_the_cpu_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install_module.detect_build() == "cpu"
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!{sys.executable}\nprint('GPU 0: NVIDIA H200')\n")
    fake.chmod(0o755)
    assert install_module.detect_build() == "cuda"
    fake.write_text(f"#!{sys.executable}\nraise SystemExit(9)\n")
    assert install_module.detect_build() == "cpu"
    assert os.access(fake, os.X_OK)
