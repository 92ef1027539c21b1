"""Where nothing can be compiled, models run without."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from shared_engine.launcher.compiler import EAGER, compile_refusal, without_compiling


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a compiler and headers."""
    path = tmp_path / "c++"
    path.touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    return path


def test_with_compiler_and_headers_it_can(compiler: Path) -> None:
    assert compile_refusal() is None


def test_without_a_compiler_it_can_not(compiler: Path) -> None:
    compiler.unlink()
    assert f"no C++ compiler here ({compiler})" in str(compile_refusal())


def test_without_headers_it_can_not(compiler: Path) -> None:
    compiler.with_name("Python.h").unlink()
    assert "install python3-dev" in str(compile_refusal())


@pytest.mark.parametrize("argv", [["--model", "m"], ["--model", "m", EAGER]])
def test_then_it_runs_eagerly(argv: list[str]) -> None:
    assert without_compiling(argv) == ["--model", "m", EAGER]
