"""Every process of the tree killed or stopped under load, on real vLLM: all requests are answered, nothing is left."""

from __future__ import annotations

import os
import random

import pytest

from shared_engine import Engine, EngineState
from tests.real.conftest import MakeEngine
from tests.support.failure_matrix import (
    CHATS,
    FAULTS,
    HANGS,
    STREAMS,
    race_an_eviction,
    start_from_twenty_processes,
    suffer,
)
from tests.support.processes import all_processes, any_exists

RACES = 6 * int(os.environ.get("FAULT_ROUNDS", "1"))


@pytest.fixture
def engine(breakable: MakeEngine) -> Engine:
    return breakable()


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in HANGS])
def test_a_killed_process_is_made_good_unseen(engine: Engine, name: str) -> None:
    outcome = suffer(engine, FAULTS[name])
    assert (outcome.answered, outcome.told, outcome.lost) == (CHATS + STREAMS, 0, 0), outcome
    assert (outcome.left, outcome.files) == (0, 0), outcome


@pytest.mark.parametrize("name", HANGS)
def test_a_process_that_stands_still_is_taken_for_hung_and_the_engine_replaced(
    breakable: MakeEngine, name: str
) -> None:
    outcome = suffer(breakable(stall_timeout_s=4), FAULTS[name])
    assert (outcome.answered, outcome.told, outcome.lost) == (CHATS + STREAMS, 0, 0), outcome
    assert (outcome.left, outcome.files) == (0, 0), outcome


def test_requests_that_race_an_eviction_are_answered(engine: Engine) -> None:
    moments = random.Random(1)
    starts = engine.status().starts
    assert all(race_an_eviction(engine, moments.uniform(0, 0.3)) for _ in range(RACES))
    assert engine.status().starts > starts, "there were evictions"


def test_a_shutdown_leaves_nothing_and_twenty_processes_at_once_start_one_engine(engine: Engine) -> None:
    engine.warmup()
    starts = engine.status().starts
    everything = all_processes(engine)
    engine.shutdown()
    assert not any_exists(everything)
    assert engine.status().state is EngineState.STOPPED
    assert start_from_twenty_processes(engine) == (20, starts + 1)
