"""The time that one call may take in all: for the engine's start, every try, and all of the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from shared_engine.errors import RequestTimeoutError

T = TypeVar("T")


class Deadline:
    """Of one call; it begins with this object.

    Args:
        timeout: seconds; None for no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._began = time.monotonic()

    @property
    def left_s(self) -> float | None:
        """Seconds left, never below 0; None where there is no limit."""
        return None if self._timeout is None else max(0.0, self._began + self._timeout - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.left_s == 0.0

    async def wait(self, what: str, awaitable: Awaitable[T]) -> T:
        """The value of ``awaitable``, which is ``what`` the call waits for.

        Raises:
            RequestTimeoutError: the time was over first, and the awaitable is cancelled.
        """
        if self._timeout is None:
            return await awaitable
        waited_since = time.monotonic()
        try:
            async with asyncio.timeout(self.left_s) as limit:
                return await awaitable
        except TimeoutError as exc:
            if not limit.expired():
                raise
            waited_s = time.monotonic() - waited_since
            message = f"the call's timeout of {self._timeout:g} s is over: it waited {waited_s:.1f} s for {what}"
            raise RequestTimeoutError(message) from exc

    def over(self, what: str, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """``items``, each of which is waited for as by ``wait``."""
        return items if self._timeout is None else _Limited(self, what, items)


class _Limited(AsyncIterator[T]):
    def __init__(self, deadline: Deadline, what: str, items: AsyncIterator[T]) -> None:
        self._deadline = deadline
        self._what = what
        self._items = items

    async def __anext__(self) -> T:
        return await self._deadline.wait(self._what, anext(self._items))
