"""Durations and counts: what they say, and that nothing is lost between threads."""

from __future__ import annotations

import os
import random
import threading

import pytest

from shared_engine.request.tally import (
    CANCELLED,
    FINEST_S,
    MAX_PENDING,
    Durations,
    EngineName,
    Entry,
    Tally,
    tallies,
    tally_of,
)
from shared_engine.results import TokenUsage
from shared_engine.stats import RequestStats, Timing


def entry(error: str | None = None, took_s: float = 0.1, retries: int = 0) -> Entry:
    return Entry(error, took_s, 0.01, 0.05, retries, TokenUsage(prompt_tokens=3, completion_tokens=2, cached_tokens=1))


@pytest.mark.parametrize("spread", [(0.0001, 0.001), (0.01, 10.0), (30.0, 4000.0)])
def test_quantiles_are_within_three_percent(spread: tuple[float, float]) -> None:
    chance = random.Random(7)
    values = sorted(chance.uniform(*spread) for _ in range(5000))
    durations = Durations()
    for value in values:
        durations.add(value)
    timing = durations.timing()
    assert timing.count == 5000
    assert timing.sum_s == pytest.approx(sum(values))
    assert timing.mean_s == pytest.approx(sum(values) / 5000)
    assert timing.max_s == values[-1]
    for found, share in ((timing.p50_s, 0.5), (timing.p95_s, 0.95), (timing.p99_s, 0.99)):
        assert found == pytest.approx(values[int(share * 5000) - 1], rel=0.03)


def test_without_an_entry_there_is_no_quantile() -> None:
    assert Durations().timing() == Timing()
    assert Timing().mean_s is None


def test_counts_below_a_limit_are_exact_at_the_ends_of_exporters_buckets() -> None:
    durations = Durations()
    for value in (0.0, 0.009, 0.01, 0.0101, 0.02, 0.3, 81.92, 100.0):
        durations.add(value)
    found = [durations.count_within(FINEST_S * 2**power) for power in (0, 1, 5, 13)]
    assert found == [3, 5, 6, 7]


def test_what_ended_how_is_counted_once() -> None:
    tally = Tally()
    for each in (entry(), entry("ContextLengthError"), entry("ContextLengthError"), entry(CANCELLED, retries=2)):
        tally.note(each)
    stats = tally.stats()
    assert (stats.requests, stats.successes, stats.cancelled, stats.retries) == (4, 1, 1, 2)
    assert stats.errors == {"ContextLengthError": 2}
    assert stats.context_overflows == 2
    assert (stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens) == (3, 2, 1)
    assert (stats.latency.count, stats.wait.count, stats.time_to_first_token.count) == (1, 4, 4)
    assert tally.stats() == stats
    tally.reset()
    assert tally.stats() == RequestStats()


@pytest.mark.slow
def test_many_threads_lose_nothing() -> None:
    tally, each = Tally(), 5 * MAX_PENDING

    def note() -> None:
        for _ in range(each):
            tally.note(entry())

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tally.stats()
    assert tally.stats().successes == 4 * each
    assert len(tally._pending) == 0


def test_a_reset_waits_for_whoever_adds_up_and_keeps_the_lock() -> None:
    tally = Tally()
    tally.note(entry())
    guard = tally._guard
    with guard:
        resetting = threading.Thread(target=tally.reset)
        resetting.start()
        resetting.join(0.1)
        assert resetting.is_alive()
        tally._add_up()  # finds what is pending
    resetting.join(10)
    assert tally._guard is guard
    assert tally.stats() == RequestStats()


def test_a_snapshot_has_what_was_noted_by_then() -> None:
    tally = Tally()
    tally.note(entry())
    snapshot = tally.snapshot()
    tally.note(entry())
    assert (snapshot.stats().successes, snapshot.latency.count, tally.stats().successes) == (1, 1, 2)


def test_a_forked_child_begins_at_zero() -> None:
    name = EngineName("model", "key")
    tally_of(name).note(entry())
    tally_of(name)._guard.acquire()  # as another thread of the parent may
    pid = os.fork()
    if pid == 0:
        os._exit(tallies()[name].stats().requests)
    _, status = os.waitpid(pid, 0)
    tally_of(name)._guard.release()
    assert os.waitstatus_to_exitcode(status) == 0
    assert tally_of(name).stats().requests >= 1
