"""Changes: wakes all who wait for something about the engine to change."""

from __future__ import annotations

import asyncio
import contextlib


class Changes:
    """Read ``count``, look at what may have changed, then wait for what came after it: so no change is missed."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def note(self) -> None:
        """Something has changed."""
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait_after(self, count: int, timeout: float) -> None:
        """Return at the first change after the ``count``-th, or after ``timeout`` seconds."""
        if self.count == count:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._next.wait()
