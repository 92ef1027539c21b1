"""What became of the server of one start, by the engine's record. Pure."""

from __future__ import annotations

from shared_engine.runtime.messages import Fate, Outcome
from shared_engine.runtime.record import Record


def outcome_of(record: Record, start_number: int, first_start: int) -> Outcome:
    """What became of the server of one start, by the record.

    Args:
        first_start: number of the first start of the supervisor that is asked: those before ended with another one.
    """
    if start_number < first_start or start_number != record.start_number:
        return Outcome(Fate.REPLACED)
    if record.is_usable:
        return Outcome(Fate.RUNNING)
    return Outcome(Fate.STOPPED) if record.failure is None else Outcome(Fate.DIED, record.failure)
