"""How many requests a model has at once, and how many wait for that: in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from shared_engine.gateway.refusals import RefusedError

RETRY_AFTER_S = 2


class Places:
    """The places of one model's requests.

    Attributes:
        taken: requests that have one.
    """

    def __init__(self, model: str, limit: int, queue_limit: int) -> None:
        self._model = model
        self._limit = limit
        self._queue_limit = queue_limit
        self._queue: deque[asyncio.Future[None]] = deque()
        self.taken = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._queue)

    def limit_to(self, limit: int, queue_limit: int) -> None:
        """From now on. Requests that have a place keep it."""
        self._limit, self._queue_limit = limit, queue_limit
        self._hand_out()

    async def take(self, timeout: float | None) -> None:
        """A place, until ``give_back``.

        Args:
            timeout: seconds to wait for it; None for as long as it takes.

        Raises:
            RefusedError: too many wait already, or none came free in time.
        """
        if self.taken < self._limit and not self._queue:
            self.taken += 1
        else:
            await self._wait(timeout)

    async def _wait(self, timeout: float | None) -> None:
        if self.waiting >= self._queue_limit:
            raise self._full(f"and {self.waiting} wait")
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(timeout):
                await place
        except BaseException as exc:
            if place.cancelled():
                with contextlib.suppress(ValueError):  # it was passed over
                    self._queue.remove(place)
            else:  # it was given at the same moment
                self.give_back()
            if isinstance(exc, TimeoutError):
                raise self._full(f"and none ended in {timeout:g} s") from None
            raise

    def give_back(self) -> None:
        """The request has ended."""
        self.taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self.taken < self._limit:
            place = self._queue.popleft()
            if not place.done():  # by a cancellation
                place.set_result(None)
                self.taken += 1

    def _full(self, why: str) -> RefusedError:
        return RefusedError(
            429,
            f"the model {self._model!r} is busy: {self._limit} requests at once, {why}; try again later",
            "queue_full",
            retry_after_s=RETRY_AFTER_S,
        )
