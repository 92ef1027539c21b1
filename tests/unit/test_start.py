"""What a failed start says of the engines beside it. Whole starts are tested in tests/fake."""

from __future__ import annotations

import pytest

from shared_engine.runtime.record import Failure, FailureKind
from shared_engine.supervisor.start import naming_those_that_stay

REFUSED = {"qwen": "busy", "llama": "pinned"}


def test_a_start_that_lacked_memory_names_who_holds_it() -> None:
    failure = naming_those_that_stay(Failure(FailureKind.MEMORY, "no memory", ("last line",)), REFUSED)
    assert failure.message == "no memory; also loaded on the device: qwen (busy), llama (pinned)"
    assert (failure.kind, failure.log_tail) == (FailureKind.MEMORY, ("last line",))


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.MEMORY])
def test_a_start_that_failed_for_another_reason_does_not_blame_them(kind: FailureKind) -> None:
    assert naming_those_that_stay(Failure(kind, "no such flag"), REFUSED) == Failure(kind, "no such flag")


def test_with_nobody_beside_it_nothing_is_added() -> None:
    failure = Failure(FailureKind.MEMORY, "no memory")
    assert naming_those_that_stay(failure, {}) == failure
