"""Real vLLM on the CPU, one engine at a time."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineError
from shared_engine.launch.interpreter import find_interpreter
from tests.support.engines import ended_engines
from tests.support.in_flight import wait_quiet

MakeEngine = Callable[..., Engine]
BREAKABLE_SEED = 999
_seeds = itertools.count(1000)


@pytest.fixture(scope="session")
def vllm_folder() -> Path:
    """vLLM's own files. Found, not imported: that takes seconds."""
    code = "import importlib.util; print(importlib.util.find_spec('vllm').origin)"
    command = [find_interpreter(None).path, "-c", code]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()).parent


@pytest.fixture
def own_engine(tiny_chat: dict[str, Any]) -> Iterator[MakeEngine]:
    """Makes engines that no other test has; they are gone when the test ends. Each costs an import of vLLM: 10 s."""
    with ended_engines() as made:

        def make(**settings: Any) -> Engine:
            # vLLM's seed has no effect on greedy answers, and makes the key another one.
            made.append(Engine(**{**tiny_chat, "seed": next(_seeds), **settings}))
            return made[-1]

        yield make


@pytest.fixture
def breakable(tiny_chat: dict[str, Any]) -> Iterator[MakeEngine]:
    """Makes an engine that a test may break, evict and end; all tests have the same one, each keeps it as it wishes.

    A test finds it in any state, with starts that were others'. It is evicted after each test, with which the wishes of
    how it is to be kept end; its launcher, which has imported vLLM, stays: a start takes 3 s in place of 10.
    """
    made: list[Engine] = []

    def make(**wishes: Any) -> Engine:
        made.append(Engine(**{**tiny_chat, "seed": BREAKABLE_SEED, **wishes}))
        return made[-1]

    yield make
    if made:
        try:
            made[0].evict(timeout=5)
        except EngineError:  # the test has failed and left it busy or stopped: the next one shall not suffer from it
            made[0].shutdown(force=True)


@pytest.fixture
def quiet_engine(tiny_chat: dict[str, Any]) -> Iterator[Engine]:
    """The engine that the whole run shares, ready and quiet; the test must leave it so."""
    engine = Engine(**tiny_chat)
    engine.warmup()
    wait_quiet(engine)
    yield engine
    wait_quiet(engine)
