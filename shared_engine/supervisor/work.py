"""Work: what changes the engine's state, one piece at a time: a start, a stop, falling asleep."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import ClassVar

from shared_engine.runtime.record import Failure, FailureKind


class Work(ABC):
    """One piece of work."""

    can_be_cancelled: ClassVar[bool] = False
    """Whether ending the engine cancels it. The stop that follows ends whatever server is left."""
    is_giving_up = False
    """It has failed, and ends what is left: its own answer comes soon."""

    @abstractmethod
    async def run(self) -> Failure | None:
        """Do it; return the failure that callers who want the engine get, if any."""


class WorkSlot:
    """At most one piece of work at a time.

    Args:
        on_done: called when one has ended.
        on_error: called with an exception that one ended with, which is a mistake in this program.
    """

    def __init__(self, on_done: Callable[[], None], on_error: Callable[[BaseException], object]) -> None:
        self._on_done = on_done
        self._on_error = on_error
        self._work: Work | None = None
        self._task: asyncio.Task[Failure | None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    @property
    def is_giving_up(self) -> bool:
        return self._work is not None and self._work.is_giving_up

    def begin(self, work: Work) -> None:
        """Begin, where none is under way."""
        assert self._task is None
        self._run(work, work.run())

    def begin_instead(self, work: Work) -> None:
        """Begin in place of what is under way: that is cancelled, where it can be, and its end waited for."""
        task = self._task
        if task is not None and self._work is not None and self._work.can_be_cancelled:
            task.cancel()  # at once: it must not go on with what comes in this very moment

        async def run() -> Failure | None:
            if task is not None:
                await asyncio.wait([task])
            return await work.run()

        self._run(work, run())

    async def outcome(self) -> Failure | None:
        """Wait for the work under way; the failure that callers who want the engine get, if any."""
        task = self._task
        if task is None:
            return None
        await asyncio.wait([task])
        if task.cancelled():
            return Failure(FailureKind.STOPPED, "the engine was stopped while it started")
        return task.result()

    def _run(self, work: Work, running: Coroutine[object, object, Failure | None]) -> None:
        self._work = work
        self._task = asyncio.create_task(running)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Failure | None]) -> None:
        if self._task is task:
            self._work = self._task = None
            self._on_done()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)
