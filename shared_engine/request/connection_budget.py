"""How many connections this process has open at once, over all its event loops and threads.

A third of the files that it may have open are for requests under way, and requests beyond wait for their turn. What is
idle is kept for the next request as long as all connections together are within that third. So there are never more
than two thirds, and the app, control sockets and event loops have the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import threading
from collections import deque


class Slot:
    """The right to one connection, until ``give_back`` or until it is dropped with a loop that is gone."""

    def __init__(self, budget: Budget) -> None:
        self._budget: Budget | None = budget

    def give_back(self) -> None:
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.put_back()

    __del__ = give_back


class Budget:
    """Slots for all loops and threads, first come first served."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # taken again where the garbage collector drops a slot meanwhile
        self._taken = 0
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[Slot]]] = deque()

    async def take(self) -> Slot:
        """A slot, as soon as one is free."""
        loop = asyncio.get_running_loop()
        with self._guard:
            if not self._waiting and self._taken < max_connections():
                self._taken += 1
                return Slot(self)
            future: asyncio.Future[Slot] = loop.create_future()
            self._waiting.append((loop, future))
        try:
            return await future
        except BaseException:
            with self._guard, contextlib.suppress(ValueError):  # it was granted meanwhile
                self._waiting.remove((loop, future))
            if future.done() and not future.cancelled():
                future.result().give_back()
            raise

    def put_back(self) -> None:
        """For the next that waits."""
        with self._guard:
            while self._waiting:
                loop, future = self._waiting.popleft()
                slot = Slot(self)
                try:
                    loop.call_soon_threadsafe(_grant, future, slot)
                except RuntimeError:  # that loop is closed
                    slot._budget = None
                else:
                    return
            self._taken -= 1


def _grant(future: asyncio.Future[Slot], slot: Slot) -> None:
    if future.cancelled():
        slot.give_back()
    else:
        future.set_result(slot)


def max_connections() -> float:
    """A third of the files that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else max(1, soft // 3)


_budget = Budget()


async def take_slot() -> Slot:
    """Of this process's one budget."""
    return await _budget.take()


def _forget_in_child() -> None:
    """A forked child has none of the parent's loops."""
    global _budget
    _budget = Budget()


os.register_at_fork(after_in_child=_forget_in_child)
