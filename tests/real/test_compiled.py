"""Default settings: the model is compiled once, and loaded at each start after that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from shared_engine.launcher.compile_cache import CHECKS

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
LOADED, COMPILED = "Directly load AOT compilation", "saved AOT compiled function"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where vLLM keeps what it compiles: nothing at first."""
    folder = tmp_path_factory.mktemp("compiled")
    os.environ["VLLM_CACHE_ROOT"] = str(folder)
    yield folder
    del os.environ["VLLM_CACHE_ROOT"]


@pytest.fixture(scope="module")
def engine(tiny_chat: dict[str, Any], cache: Path) -> Iterator[Engine]:
    engine = Engine(**{**tiny_chat, "enforce_eager": False})
    yield engine
    engine.shutdown(force=True)


def answer(engine: Engine) -> str:
    return engine.chat(QUESTION, temperature=0).text


def log_since(engine: Engine, start: int) -> str:
    return log_of(engine)[start:]


def log_of(engine: Engine) -> str:
    return Path(engine.status().log_file or "").read_text(errors="replace")


@pytest.mark.long
def test_what_was_compiled_is_loaded_at_the_next_start(engine: Engine) -> None:
    first = answer(engine)
    assert "Paris" in first
    assert COMPILED in log_of(engine)
    before = len(log_of(engine))
    engine.evict()
    assert answer(engine) == first
    assert LOADED in log_since(engine, before)
    assert "again due to a load failure" not in log_of(engine)


@pytest.mark.long
def test_what_is_damaged_is_compiled_again(engine: Engine, cache: Path) -> None:
    first = answer(engine)
    (checks,) = cache.rglob(CHECKS)
    library = max(checks.parent.parent.rglob("*.so"), key=lambda file: file.stat().st_size)
    os.truncate(library, library.stat().st_size // 2)
    before = len(log_of(engine))
    engine.evict()
    assert answer(engine) == first
    assert (
        f"damaged files in the compile cache, removed: {checks.parent / os.path.relpath(library, checks.parent)}"
        in (log_since(engine, before))
    )
    assert COMPILED in log_since(engine, before)

    before = len(log_of(engine))
    engine.evict()
    assert answer(engine) == first
    assert LOADED in log_since(engine, before)


@pytest.mark.long
def test_without_a_compiler_the_model_runs_all_the_same(
    tiny_chat: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    engine = Engine(**{**tiny_chat, "enforce_eager": False, "seed": 77})
    try:
        assert "Paris" in answer(engine)
        assert engine.chat(QUESTION, logprobs=2, max_tokens=3).logprobs
        assert f"there is no C++ compiler here ({tmp_path / 'no-compiler'})" in log_of(engine)
    finally:
        engine.shutdown(force=True)
