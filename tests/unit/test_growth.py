"""How many of several engines are needed: pure, on a clock of the test's own."""

from __future__ import annotations

import pytest

from shared_engine.pool.growth import CALM_S, LOOKS_UNTIL_FULL, Growth

TAKES = 10


@pytest.mark.parametrize(("in_flight", "needed"), [(0, 1), (9, 1), (10, 2), (19, 2), (20, 3), (30, 4), (1000, 4)])
def test_one_more_where_those_in_use_have_all_that_they_take(in_flight: int, needed: int) -> None:
    assert Growth(4, TAKES).decide(in_flight, 0.0) == needed


@pytest.mark.parametrize(("in_flight", "needed"), [(0, 1), (5, 1), (6, 2), (10, 2), (11, 3), (20, 4)])
def test_one_less_where_the_others_would_do_with_half(in_flight: int, needed: int) -> None:
    growth = Growth(4, TAKES)
    growth.decide(1000, 0.0)
    assert growth.decide(in_flight, CALM_S - 0.1) == 4, "it may be a moment's calm"
    assert growth.decide(in_flight, CALM_S) == needed


def test_a_moments_load_begins_the_calm_again() -> None:
    growth = Growth(2, TAKES)
    growth.decide(TAKES, 0.0)
    growth.decide(1, CALM_S - 1)
    assert growth.decide(6, CALM_S - 0.5) == 2
    assert growth.decide(1, CALM_S + 1) == 2
    assert growth.decide(1, 2 * CALM_S) == 1


def test_the_first_request_after_a_long_pause_finds_one() -> None:
    growth = Growth(4, TAKES)
    growth.decide(1000, 0.0)
    assert growth.decide(1, 3600.0) == 1


def test_a_load_that_one_takes_and_no_more_does_not_swing() -> None:
    growth, now, needed = Growth(2, TAKES), 0.0, set()
    for step in range(200):
        now += 0.5
        needed.add(growth.decide(TAKES - 1 if step % 2 else TAKES, now))
        if step == 0:
            needed.clear()
    assert needed == {2}


def test_what_waits_in_a_queue_tells_what_one_takes() -> None:
    growth = Growth(2, TAKES)
    for _ in range(LOOKS_UNTIL_FULL - 1):
        growth.saw("a", running=4, waiting=2)
    assert growth.decide(6, 0.0) == 1, "one request may wait while a long prompt is read"
    growth.saw("a", running=4, waiting=2)
    assert growth.decide(6, 1.0) == 2
    growth.saw("a", running=7, waiting=0)
    assert growth.takes == 7, "more than was believed"
    growth.saw("a", running=200, waiting=0)
    assert growth.takes == TAKES


def test_a_queue_that_is_empty_now_and_then_is_none() -> None:
    growth = Growth(2, TAKES)
    for _ in range(10):
        growth.saw("a", running=4, waiting=2)
        growth.saw("a", running=4, waiting=0)
        growth.saw("b", running=4, waiting=2)
        growth.saw("b", running=0, waiting=3)
    assert growth.takes == TAKES


def test_one_that_refuses_is_full() -> None:
    growth = Growth(2, TAKES)
    growth.refused(0.0)
    assert growth.decide(1, 1.0) == 2
    growth.refused(2.0)
    assert growth.decide(1, 2.0) == 2, "there are no more"
    assert growth.decide(1, 2.0 + CALM_S) == 1
