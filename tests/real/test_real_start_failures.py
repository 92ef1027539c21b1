"""Starts that fail on real vLLM: soon, with the cause, told to all who wait, and nothing is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import (
    Engine,
    EngineNotInstalledError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineState,
    SettingsError,
)
from tests.real.conftest import MakeEngine
from tests.support.engines import copy_of_tiny_chat, ended_engines
from tests.support.paths import TINY_CHAT
from tests.support.processes import all_processes, any_exists
from tests.support.waiting import wait_until

pytestmark = pytest.mark.apart
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def engine(folder: Path, tiny_chat: dict[str, Any]) -> Iterator[Engine]:
    """An engine on a model that the tests damage and repair."""
    with ended_engines() as made:
        made.append(Engine(**{**tiny_chat, "model": copy_of_tiny_chat(folder)}))
        yield made[0]


def test_a_wrong_path_fails_at_once_with_the_path() -> None:
    began = time.monotonic()
    with pytest.raises(SettingsError, match="/nowhere/tiny_chat"):
        Engine(model="/nowhere/tiny_chat").chat(HELLO)
    assert time.monotonic() - began < 5


def test_a_python_without_vllm_fails_at_once() -> None:
    with pytest.raises(EngineNotInstalledError, match=r"has no vLLM.*vllm-local install"):
        Engine(model=str(TINY_CHAT), python=sys.executable).chat(HELLO)


def test_a_failed_start_tells_all_who_wait_why_and_leaves_nothing(engine: Engine, folder: Path) -> None:
    copy_of_tiny_chat(folder, architectures=["NoSuchForCausalLM"], model_type="no_such")

    def fault(_: int) -> EngineStartError:
        with pytest.raises(EngineStartError) as caught:
            engine.chat(HELLO)
        return caught.value

    with ThreadPoolExecutor(5) as pool:
        errors = list(pool.map(fault, range(5)))
    assert all("does not support the model" in error.message for error in errors)
    assert all(error.log_tail for error in errors)
    status = engine.status()
    assert (status.state, status.starts, status.server_pid) == (EngineState.FAILED, 1, None)

    # The next try is free; a start that keeps failing is held back, and callers wait for it, as long as they can.
    fault(0)
    assert engine.status().starts == 2
    began = time.monotonic()
    fault(0)
    fault(0)
    assert time.monotonic() - began > 1 + 2
    hasty = Engine(engine.settings.model_copy(update={"start_timeout_s": 0.1}))
    with pytest.raises(EngineStartError, match=r"does not support the model.*the next start is allowed in"):
        hasty.chat(HELLO)
    assert engine.status().starts == 4

    # Repaired, it starts.
    copy_of_tiny_chat(folder)
    assert engine.chat(HELLO, max_tokens=8).text


def test_damaged_weights_are_named(engine: Engine, folder: Path) -> None:
    engine.evict()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(EngineStartError, match="weights are damaged"):
        engine.chat(HELLO)


@pytest.mark.long
def test_a_flag_vllm_does_not_know_is_named(own_engine: MakeEngine) -> None:
    engine = own_engine(engine_args={"no_such_flag": 1})
    with pytest.raises(EngineStartError, match="vLLM does not know --no-such-flag"):
        engine.chat(HELLO)


@pytest.mark.long
def test_who_waits_no_longer_leaves_the_start_to_go_on(own_engine: MakeEngine) -> None:
    engine = own_engine(start_timeout_s=0.5)
    with pytest.raises(EngineStartTimeoutError, match=r"start_timeout_s = 0\.5 s"):
        engine.chat(HELLO)
    wait_until(engine.is_ready, 120, "the start to go on")
    everything = all_processes(engine)
    engine.shutdown()
    assert not any_exists(everything)
