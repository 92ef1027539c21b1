"""How long the next start has to wait after starts that failed."""

from __future__ import annotations

import pytest

from shared_engine.supervisor.backoff import FAILED_STANDBY_S, MAX_WAIT_S, Backoff


@pytest.mark.parametrize(
    ("failures", "wait_s"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (6, 16), (7, MAX_WAIT_S), (99, MAX_WAIT_S)]
)
def test_the_first_try_is_free_and_each_after_it_waits_twice_as_long(failures: int, wait_s: float) -> None:
    backoff = Backoff(clock=lambda: 100.0)
    for _ in range(failures):
        backoff.failed()
    assert backoff.remaining_s() == wait_s


def test_a_start_that_was_killed_may_be_tried_at_once_some_times() -> None:
    backoff = Backoff(clock=lambda: 100.0)
    waits = []
    for _ in range(8):
        backoff.was_killed()
        waits.append(backoff.remaining_s())
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4]
    backoff.failed()
    assert backoff.remaining_s() == 0, "the first that failed by itself"


def test_the_wait_passes_and_a_success_ends_it() -> None:
    now = [100.0]
    backoff = Backoff(clock=lambda: now[0])
    for _ in range(4):
        backoff.failed()
    now[0] += 3.5
    assert backoff.remaining_s() == 0.5
    now[0] += 1
    assert backoff.remaining_s() == 0
    backoff.succeeded()
    backoff.failed()
    assert backoff.remaining_s() == 0


def test_a_launcher_of_a_start_that_failed_does_not_stay_long() -> None:
    backoff = Backoff(lambda: 0.0)
    assert backoff.standby_ttl_s(1800.0) == 1800.0
    backoff.was_killed()
    assert backoff.standby_ttl_s(1800.0) == 1800.0, "the next start will do"
    backoff.failed()
    assert (backoff.standby_ttl_s(1800.0), backoff.standby_ttl_s(5.0)) == (FAILED_STANDBY_S, 5.0)
    backoff.succeeded()
    assert backoff.standby_ttl_s(1800.0) == 1800.0
