"""What a failed start says of the engines beside it. The supervisor's life is tested in tests/fake."""

from __future__ import annotations

import pytest

from shared_engine.runtime.record import Failure
from shared_engine.supervisor.supervisor import _with_neighbours

STAYING = {"qwen": "busy", "llama": "pinned"}


def test_a_start_that_lacked_memory_names_who_holds_it() -> None:
    failure = _with_neighbours(Failure("memory", "no memory", ("last line",)), STAYING)
    assert failure.message == "no memory; also loaded on the device: qwen (busy), llama (pinned)"
    assert (failure.kind, failure.log_tail) == ("memory", ("last line",))


@pytest.mark.parametrize("kind", ["start", "timeout", "not_installed"])
def test_a_start_that_failed_for_another_reason_does_not_blame_them(kind: str) -> None:
    assert _with_neighbours(Failure(kind, "no such flag"), STAYING) == Failure(kind, "no such flag")


def test_with_nobody_beside_it_nothing_is_added() -> None:
    assert _with_neighbours(Failure("memory", "no memory"), {}) == Failure("memory", "no memory")
