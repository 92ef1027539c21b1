"""Completion, installed by the command and tried in the shells themselves, on a terminal."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_engine.cli.completion import MARK
from shared_engine.cli.main import main
from tests.support.hand_made import MakeEngine
from tests.support.paths import REPOSITORY

Capture = pytest.CaptureFixture[str]
SHELLS = ("bash", "zsh", "fish")
each_shell = pytest.mark.parametrize("shell", SHELLS)


@pytest.fixture
def home(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, with the command on the path."""
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "bin/vllm-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m shared_engine.cli "$@"\n')
    program.chmod(0o755)
    home = tmp_path / "a user's home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TERM", "dumb")
    return home


def see_completed(shell: str, typed: str, expected: str, home: Path) -> None:
    """A shell that has just started makes this of the words when the tabulator key is pressed twice."""
    assert expected not in typed
    if shell == "fish":
        command = ["fish", "-c", 'complete -C "$argv[1]"', typed]
        done = subprocess.run(command, capture_output=True, text=True, cwd=home, timeout=30, check=True)
        assert expected in done.stdout
        return
    ours, theirs = pty.openpty()
    command = [shell, "-i"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=home, start_new_session=True)
    os.close(theirs)
    try:
        # What the shell says when it is ready is not what it echoes: the words stand in two parts there.
        os.write(ours, b"echo 'it is'' ready'\n")
        read_until(ours, b"it is ready")
        os.write(ours, typed.encode() + b"\t\t")
        read_until(ours, expected.encode())
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, expected: bytes) -> None:
    shown, deadline = b"", time.monotonic() + 30
    while expected not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 65536)


@pytest.mark.slow
@each_shell
def test_a_shell_completes_commands_options_words_and_models(shell: str, home: Path, hand_made: MakeEngine) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", "install", shell]) == 0
    model = home / "hub/hub/models--org--name/blobs"
    model.mkdir(parents=True)
    hand_made(model="/models/an-engine")
    (model.parent.with_name("models--org--n$(touch run)`touch run`") / "blobs").mkdir(parents=True)
    see_completed(shell, "vllm-local stat", "status", home)
    see_completed(shell, "vllm-local load --max-model", "--max-model-len", home)
    see_completed(shell, "vllm-local load --ssl-ca", "--ssl-ca-certs", home)
    see_completed(shell, "vllm-local load --dtype bf", "bfloat16", home)
    see_completed(shell, "vllm-local show org/n", "org/name", home)
    assert not (home / "run").exists(), "a name is only a name"
    see_completed(shell, "vllm-local logs an-e", "an-engine", home)


@each_shell
@pytest.mark.slow
def test_it_is_installed_once_and_removed_without_a_trace(shell: str, home: Path, capsys: Capture) -> None:
    start_up = home / f".{shell}rc"
    was = b"alias a=b  # \xe4\r\n\x0c\n"
    start_up.write_bytes(was)
    assert main(["completion", "install", shell]) == 0
    first = start_up.read_bytes()
    assert main(["completion", "install", shell]) == 0
    assert start_up.read_bytes() == first
    assert first.startswith(was)
    assert first.count(MARK.encode()) == (0 if shell == "fish" else 1)
    assert capsys.readouterr().out.count("written: ") == (2 if shell == "fish" else 3)
    assert main(["completion", "remove", shell]) == 0
    assert start_up.read_bytes() == was
    assert [file for file in home.rglob("*vllm-local*") if file.is_file()] == []
    assert main(["completion", "remove", shell]) == 0
    assert capsys.readouterr().out.endswith(f"nothing was installed for {shell}\n")


def test_the_shell_is_the_users(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert main(["completion", "show"]) == 0
    assert "complete -c vllm-local" in capsys.readouterr().out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion", "install"]) == 2
    assert "SHELL = '/bin/tcsh': name one of bash, zsh, fish" in capsys.readouterr().err
