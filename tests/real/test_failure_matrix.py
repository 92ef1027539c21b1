"""Signals to each process of the tree, on real vLLM: nothing is lost in silence, nothing is left.

Here some of the matrix, and all of it with FAULT_ROUNDS set (``make test-faults``, ``make bench-faults``).
"""

from __future__ import annotations

import os
import random
from signal import SIGKILL, SIGSTOP, SIGTERM

import pytest

from shared_engine import Engine, EngineState
from tests.real.conftest import MakeEngine
from tests.support.failure_matrix import (
    ACTIVITIES,
    FAULTS,
    Fault,
    race_an_eviction,
    start_from_twenty_processes,
)
from tests.support.processes import all_processes, any_exists

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "0"))
RACES = 6 * max(ROUNDS, 1)
HEARD_WITHIN_S = 5.0
STALL_TIMEOUT_S = 4.0
IN_CI = {
    "nothing shown yet": (Fault(SIGKILL, "supervisor"),),
    "in mid-stream": (Fault(SIGTERM, "APIServer"),),
    "idle": (),
    "starting": (),
    "stopping": (),
}
CASES = [(activity, fault) for activity in ACTIVITIES for fault in (FAULTS if ROUNDS else IN_CI[activity])]


@pytest.fixture
def engine(breakable: MakeEngine) -> Engine:
    return breakable(stall_timeout_s=STALL_TIMEOUT_S)


@pytest.mark.parametrize(("activity", "fault"), CASES, ids=[f"{fault}, {activity}" for activity, fault in CASES])
def test_a_signal_is_made_good_or_told(engine: Engine, activity: str, fault: Fault) -> None:
    for _ in range(max(ROUNDS, 1)):
        outcome = ACTIVITIES[activity](engine, fault)
        assert outcome.lost == 0, outcome
        if activity != "in mid-stream" or fault.is_ignored:
            assert outcome.told == 0, outcome
        limit_s = HEARD_WITHIN_S + (STALL_TIMEOUT_S if fault.signal is SIGSTOP else 0.0)
        assert outcome.heard_s < limit_s, outcome
        assert (outcome.left, outcome.files) == (0, 0), outcome


@pytest.mark.long
def test_requests_that_race_an_eviction_are_answered(engine: Engine) -> None:
    moments = random.Random(1)
    starts = engine.status().starts
    assert all(race_an_eviction(engine, moments.uniform(0, 0.3)) for _ in range(RACES))
    assert engine.status().starts > starts, "there were evictions"


@pytest.mark.long
def test_a_shutdown_leaves_nothing_and_twenty_processes_at_once_start_one_engine(engine: Engine) -> None:
    engine.warmup()
    starts = engine.status().starts
    everything = all_processes(engine)
    engine.shutdown()
    assert not any_exists(everything)
    assert engine.status().state is EngineState.STOPPED
    assert start_from_twenty_processes(engine) == (20, starts + 1)
