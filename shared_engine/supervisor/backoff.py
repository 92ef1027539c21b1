"""Backoff: how long to wait after starts that failed."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_WAIT_S = 30.0
FAILED_STANDBY_S = 120.0
"""While somebody may be mending the cause; a launcher takes half a GB."""
FREE_TRIES, FREE_TRIES_AFTER_KILLS = 1, 5


class Backoff:
    """The first new try is free: the user may have fixed the cause. After that, each waits twice as long.

    A start that somebody else has ended is no reason to wait, until that becomes a habit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._killed = 0
        self.retry_at = 0.0
        """When the next start is allowed, on the clock."""

    def failed(self) -> None:
        """A start has failed by itself."""
        self._failures += 1
        self.retry_at = self._clock() + _wait_s(self._failures - FREE_TRIES)

    def was_killed(self) -> None:
        """A start was ended from outside."""
        self._killed += 1
        self.retry_at = self._clock() + _wait_s(self._killed - FREE_TRIES_AFTER_KILLS)

    def succeeded(self) -> None:
        """A start has gone well."""
        self._failures = self._killed = 0

    def standby_ttl_s(self, wished_s: float) -> float:
        """How long a launcher stays without a server: not as long as ``wished_s`` after a start that failed by itself,
        as of a model whose name is wrong.
        """
        return min(wished_s, FAILED_STANDBY_S) if self._failures else wished_s

    def remaining_s(self) -> float:
        """Seconds until the next start is allowed; 0 if it is."""
        return max(0.0, self.retry_at - self._clock())


def _wait_s(tries: int) -> float:
    """After the free ones."""
    return 0.0 if tries <= 0 else min(2.0 ** (tries - 1), MAX_WAIT_S)
