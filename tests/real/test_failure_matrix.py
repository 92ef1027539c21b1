"""Every process of the tree killed or stopped under load, on real vLLM: all requests are answered, nothing is left."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from shared_engine import Engine
from tests.support.failure_matrix import (
    CHATS,
    FAULTS,
    HANGS,
    STREAMS,
    race_an_eviction,
    start_from_twenty_processes,
    suffer,
)

MakeEngine = Callable[..., Engine]
RACES = 20


@pytest.fixture(scope="module")
def engine(module_engine: MakeEngine) -> Engine:
    return module_engine(stall_timeout_s=4)


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in HANGS])
def test_a_killed_process_is_made_good_unseen(engine: Engine, name: str) -> None:
    outcome = suffer(engine, FAULTS[name])
    assert (outcome.answered, outcome.told, outcome.lost) == (CHATS + STREAMS, 0, 0), outcome
    assert (outcome.left, outcome.files) == (0, 0), outcome


@pytest.mark.parametrize("name", HANGS)
def test_a_process_that_stands_still_is_taken_for_hung_and_the_engine_replaced(engine: Engine, name: str) -> None:
    outcome = suffer(engine, FAULTS[name])
    assert (outcome.answered, outcome.told, outcome.lost) == (CHATS + STREAMS, 0, 0), outcome
    assert (outcome.left, outcome.files) == (0, 0), outcome


def test_requests_that_race_an_eviction_are_answered(engine: Engine) -> None:
    moments = random.Random(1)
    starts = engine.status().starts
    assert all(race_an_eviction(engine, moments.uniform(0, 0.3)) for _ in range(RACES))
    assert engine.status().starts > starts, "there were evictions"


def test_twenty_processes_at_once_start_one_engine(own_engine: MakeEngine) -> None:
    assert start_from_twenty_processes(own_engine()) == (20, 1)
