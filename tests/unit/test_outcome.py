"""What became of a start, by the record."""

from __future__ import annotations

import pytest

from shared_engine.runtime.messages import Fate, Outcome
from shared_engine.runtime.outcome import outcome_of
from shared_engine.runtime.record import EngineState, Failure, FailureKind, Record

READY, FAILED, STANDBY = EngineState.READY, EngineState.FAILED, EngineState.STANDBY
DIED = Failure(FailureKind.DIED, "vLLM ended with exit code 0")


@pytest.mark.parametrize(
    ("record", "first_start", "outcome"),
    [
        (Record(state=READY, start_number=3), 1, Outcome(Fate.RUNNING)),
        (Record(state=READY, start_number=3), 3, Outcome(Fate.RUNNING)),
        # It has died, and what is left of it is being ended.
        (Record(state=READY, start_number=3, failure=DIED), 1, Outcome(Fate.DIED, DIED)),
        (Record(state=FAILED, start_number=3, failure=DIED), 1, Outcome(Fate.DIED, DIED)),
        (Record(state=STANDBY, start_number=3), 1, Outcome(Fate.STOPPED)),
        (Record(state=EngineState.STOPPING, start_number=3), 1, Outcome(Fate.STOPPED)),
        (Record(state=EngineState.STOPPED, start_number=3), 1, Outcome(Fate.STOPPED)),
        (Record(state=READY, start_number=4), 1, Outcome(Fate.REPLACED)),
        (Record(state=EngineState.STARTING, start_number=4), 1, Outcome(Fate.REPLACED)),
        # Another supervisor's start: the engine ended with it, whatever this one does.
        (Record(state=EngineState.STOPPED, start_number=3), 4, Outcome(Fate.REPLACED)),
        (Record(state=READY, start_number=4), 4, Outcome(Fate.REPLACED)),
    ],
)
def test_what_became_of_the_third_start(record: Record, first_start: int, outcome: Outcome) -> None:
    assert outcome_of(record, 3, first_start, deaths={}) == outcome


def test_how_a_start_died_is_known_after_the_next_one() -> None:
    assert outcome_of(Record(state=READY, start_number=5), 3, 1, {3: DIED}) == Outcome(Fate.DIED, DIED)
    assert outcome_of(Record(state=READY, start_number=5), 4, 1, {3: DIED}) == Outcome(Fate.REPLACED)
