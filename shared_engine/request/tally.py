"""Counts the requests of this process, by engine. Fork-safe.

A request that ends leaves one entry in a queue, without a lock. Entries are added up when somebody reads them, or when
there are many, by the one request that finds nobody else at it.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from shared_engine.results import TokenUsage
from shared_engine.stats import RequestStats, Timing

MAX_PENDING = 1000
FINEST_S = 0.01
STEPS = 16
"""Buckets for each doubling of the time. An exporter's, which double from FINEST_S, end where some of these do."""


class EngineName(NamedTuple):
    """What requests are counted by.

    Attributes:
        model: as the settings name it; empty where the server has only one.
        engine: a local engine's key, which is empty until it is known; a remote one's URL.
    """

    model: str
    engine: str


class Entry(NamedTuple):
    """One request that has ended.

    Attributes:
        error: the class of its error; ``CANCELLED``; None for a success.
        took_s, wait_s, first_s: see RequestStats.
    """

    error: str | None
    took_s: float
    wait_s: float | None
    first_s: float | None
    retries: int
    usage: TokenUsage | None


CANCELLED = "cancelled"


class Durations:
    """Durations in buckets that grow by 4 % each."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self._max_s = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, duration_s: float) -> None:
        self.count += 1
        self.sum_s += duration_s
        self._max_s = max(self._max_s, duration_s)
        self._buckets[math.ceil(math.log2(max(duration_s, 1e-9) / FINEST_S) * STEPS)] += 1

    def include(self, other: Durations) -> None:
        """Those of another engine too."""
        self.count += other.count
        self.sum_s += other.sum_s
        self._max_s = max(self._max_s, other._max_s)
        self._buckets.update(other._buckets)

    def count_within(self, limit_s: float) -> int:
        """How many took no longer than ``limit_s``, which is FINEST_S times a power of two."""
        last = round(math.log2(limit_s / FINEST_S) * STEPS)
        return sum(count for bucket, count in self._buckets.items() if bucket <= last)

    def timing(self) -> Timing:
        if not self.count:
            return Timing()
        return Timing(
            count=self.count,
            sum_s=self.sum_s,
            p50_s=self._quantile(0.5),
            p95_s=self._quantile(0.95),
            p99_s=self._quantile(0.99),
            max_s=self._max_s,
        )

    def _quantile(self, share: float) -> float:
        """In the middle of the bucket that the entry lies in."""
        rank, bucket = math.ceil(share * self.count), 0
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                break
        middle_s: float = FINEST_S * 2.0 ** ((bucket - 0.5) / STEPS)
        return min(middle_s, self._max_s)


class Tally:
    """The requests of this process to one engine."""

    def __init__(self) -> None:
        self._pending: deque[Entry] = deque()
        self.begin()

    def reset(self) -> None:
        """Begin at zero."""
        with self._guard:
            self._clear()

    def begin(self) -> None:
        """Begin at zero in a process that has no other threads yet, one of which may have held the lock."""
        self._guard = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._pending.clear()
        self._successes = 0
        self._errors: Counter[str] = Counter()
        self._retries = 0
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0
        self.latency, self.time_to_first_token, self.wait = Durations(), Durations(), Durations()

    def note(self, entry: Entry) -> None:
        """One more request has ended."""
        self._pending.append(entry)
        if len(self._pending) >= MAX_PENDING and self._guard.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._guard.release()

    def include(self, other: Tally) -> None:
        """Those of another engine too, as they are now."""
        with other._guard:
            other._add_up()
            self._successes += other._successes
            self._errors.update(other._errors)
            self._retries += other._retries
            self._prompt_tokens += other._prompt_tokens
            self._completion_tokens += other._completion_tokens
            self._cached_tokens += other._cached_tokens
            self.latency.include(other.latency)
            self.time_to_first_token.include(other.time_to_first_token)
            self.wait.include(other.wait)

    def snapshot(self) -> Tally:
        """A copy of what has been noted so far, whose numbers belong together."""
        copy = Tally()
        copy.include(self)
        return copy

    def stats(self) -> RequestStats:
        """What has been noted so far."""
        with self._guard:
            self._add_up()
            errors = dict(self._errors)
            cancelled = errors.pop(CANCELLED, 0)
            return RequestStats(
                requests=self._successes + cancelled + sum(errors.values()),
                successes=self._successes,
                cancelled=cancelled,
                errors=errors,
                retries=self._retries,
                prompt_tokens=self._prompt_tokens,
                completion_tokens=self._completion_tokens,
                cached_tokens=self._cached_tokens,
                latency=self.latency.timing(),
                time_to_first_token=self.time_to_first_token.timing(),
                wait=self.wait.timing(),
            )

    def _add_up(self) -> None:
        for _ in range(len(self._pending)):
            entry = self._pending.popleft()
            self._retries += entry.retries
            if entry.wait_s is not None:
                self.wait.add(entry.wait_s)
            if entry.first_s is not None:
                self.time_to_first_token.add(entry.first_s)
            if entry.error is not None:
                self._errors[entry.error] += 1
                continue
            self._successes += 1
            self.latency.add(entry.took_s)
            if entry.usage is not None:
                self._prompt_tokens += entry.usage.prompt_tokens
                self._completion_tokens += entry.usage.completion_tokens
                self._cached_tokens += entry.usage.cached_tokens or 0


_tallies: dict[EngineName, Tally] = {}


def tally_of(name: EngineName) -> Tally:
    """The one tally that this process has of an engine."""
    return _tallies.get(name) or _tallies.setdefault(name, Tally())


def stats_of(names: Iterable[EngineName]) -> RequestStats:
    """The requests to several engines together."""
    whole = Tally()
    for name in names:
        if (tally := _tallies.get(name)) is not None:
            whole.include(tally)
    return whole.stats()


def tallies() -> dict[EngineName, Tally]:
    """All engines that this process has sent requests to."""
    return dict(_tallies)


def _reset_in_child() -> None:
    """A forked child has sent nothing yet, and must not wait for a lock that a thread of the parent held."""
    for tally in _tallies.values():
        tally.begin()


os.register_at_fork(after_in_child=_reset_in_child)
