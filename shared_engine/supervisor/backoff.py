"""Backoff: how long to wait after starts that failed."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_WAIT_S = 30.0


class Backoff:
    """The first new try is free: the user may have fixed the cause. After that, each waits twice as long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self.retry_at = 0.0
        """When the next start is allowed, on the clock."""

    def failed(self) -> None:
        """A start has failed."""
        self._failures += 1
        wait_s = 0.0 if self._failures == 1 else min(2.0 ** (self._failures - 2), MAX_WAIT_S)
        self.retry_at = self._clock() + wait_s

    def succeeded(self) -> None:
        """A start has gone well."""
        self._failures = 0

    def remaining_s(self) -> float:
        """Seconds until the next start is allowed; 0 if it is."""
        return max(0.0, self.retry_at - self._clock())
