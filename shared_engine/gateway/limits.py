"""How many requests a model has at once, and how many wait for that: in the order in which they came."""

from __future__ import annotations

import asyncio

from shared_engine.gateway.refusals import RefusedError

RETRY_AFTER_S = 2


class Places:
    """The places of one model's requests.

    Attributes:
        taken: requests that have one.
        waiting: requests that wait for one.
    """

    def __init__(self, model: str, limit: int, queue_limit: int) -> None:
        self._model = model
        self._limit = limit
        self._queue_limit = queue_limit
        self._free = asyncio.Semaphore(limit)
        self.taken = 0
        self.waiting = 0

    async def take(self, timeout: float | None) -> None:
        """A place, until ``give_back``.

        Args:
            timeout: seconds to wait for it; None for as long as it takes.

        Raises:
            RefusedError: too many wait already, or none came free in time.
        """
        if self._free.locked():
            await self._wait(timeout)
        else:
            await self._free.acquire()
        self.taken += 1

    async def _wait(self, timeout: float | None) -> None:
        if self.waiting >= self._queue_limit:
            raise self._full(f"and {self.waiting} wait")
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                await self._free.acquire()
        except TimeoutError:
            raise self._full(f"and none ended in {timeout:g} s") from None
        finally:
            self.waiting -= 1

    def give_back(self) -> None:
        """The request has ended."""
        self.taken -= 1
        self._free.release()

    def _full(self, why: str) -> RefusedError:
        return RefusedError(
            429,
            f"the model {self._model!r} is busy: {self._limit} requests at once, {why}; try again later",
            "queue_full",
            retry_after_s=RETRY_AFTER_S,
        )
