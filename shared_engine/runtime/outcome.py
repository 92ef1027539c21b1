"""What became of the server of one start, by the engine's record. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shared_engine.runtime.messages import Fate, Outcome
from shared_engine.runtime.record import Failure, Record


def outcome_of(record: Record, start_number: int, first_start: int, deaths: Mapping[int, Failure]) -> Outcome:
    """What became of the server of one start, by the record.

    Args:
        first_start: number of the first start of the supervisor that is asked: those before ended with another one.
        deaths: how servers have died, by the number of their start.
    """
    if start_number in deaths:
        return Outcome(Fate.DIED, deaths[start_number])
    if start_number < first_start or start_number != record.start_number:
        return Outcome(Fate.REPLACED)
    if record.is_usable:
        return Outcome(Fate.RUNNING)
    return Outcome(Fate.STOPPED) if record.failure is None else Outcome(Fate.DIED, record.failure)
