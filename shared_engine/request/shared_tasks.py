"""SharedTasks: callers of one event loop that want the same thing wait for one task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from shared_engine.request.threads import running_loop

T = TypeVar("T")


class SharedTasks:
    """Tasks under way, by event loop and key."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Task[Any]] = {}

    def is_running(self, key: Hashable) -> bool:
        """True when ``run`` would join a task of the running loop."""
        return (asyncio.get_running_loop(), key) in self._tasks

    async def run(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The value of the running loop's task for ``key``, which ``make`` begins where there is none.

        Cancelling one caller stops its waiting only; the task goes on.
        """
        loop = running_loop()
        task = self._tasks.get((loop, key))
        if task is None:
            task = self._tasks[loop, key] = loop.create_task(make())
            task.add_done_callback(lambda _: self._tasks.pop((loop, key), None))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, if all callers have left
        value: T = await asyncio.shield(task)
        return value

    def forget(self) -> None:
        """After a fork, in the child: their loops are the parent's."""
        self._tasks.clear()
