"""Growth: how many of several engines are needed for the requests in flight.

One more when those that are used have all that they take at once. One less only when the others would do with half of
that, for CALM_S seconds: an engine that gets nothing more falls idle, and is evicted by itself.

What one takes at once is what it is set to run at once, or less: as many as it ran while others waited in its queue, as
where its KV cache is full.
"""

from __future__ import annotations

import math

CALM_S = 10.0
ENOUGH = 0.5
LOOKS_UNTIL_FULL = 3
"""So many in a row have to see requests that wait: one may do so while a long prompt is read."""


class Growth:
    """See the module's docstring. On the caller's clock.

    Args:
        count: how many engines there are.
        takes: requests that each is set to run at once, as far as it is known.
    """

    def __init__(self, count: int, takes: int) -> None:
        self._count = count
        self._set_to_take = takes
        self.reset()

    def reset(self) -> None:
        """Begin with one."""
        self.takes = self._set_to_take
        self.needed = 1
        self._busy_at = -math.inf
        self._looks_full: dict[str, int] = {}

    def told(self, takes: int) -> None:
        """An engine has said how many requests it is set to run at once."""
        if takes != self._set_to_take:
            self._set_to_take = self.takes = takes

    def saw(self, name: str, running: int, waiting: int) -> None:
        """What an engine says of its own queue."""
        if running and waiting:
            self._looks_full[name] = self._looks_full.get(name, 0) + 1
            if self._looks_full[name] >= LOOKS_UNTIL_FULL:
                self.takes = min(self.takes, running)
            return
        self._looks_full.pop(name, None)
        self.takes = min(self._set_to_take, max(self.takes, running))

    def refused(self, now: float) -> None:
        """An engine has said that it takes no more."""
        self.needed, self._busy_at = min(self._count, self.needed + 1), now

    def decide(self, in_flight: float, now: float) -> int:
        """How many engines are needed, for so many requests on all of them."""
        needed = min(self._count, max(1, math.floor(in_flight / self.takes) + 1))
        enough = min(self._count, max(1, math.ceil(in_flight / (ENOUGH * self.takes))))
        if needed > self.needed:
            self.needed, self._busy_at = needed, now
        elif enough >= self.needed:
            self._busy_at = now
        elif now - self._busy_at >= CALM_S:
            self.needed, self._busy_at = enough, now
        return self.needed
