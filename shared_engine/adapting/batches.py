"""Many calls at once, for the batches of an adapter: in threads, or in tasks of an event loop.

The calls are an app's code too (callbacks, caches). The first error, Ctrl-C at any moment, or leaving the loop early
ends the requests that are still running, and is not kept waiting by the app's own code. Knows nothing of prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

from shared_engine.errors import EngineError
from shared_engine.request.io_loop import CancelScope
from shared_engine.request.threads import start_thread

T = TypeVar("T")

LEAVE_S = 0.5
"""How long threads whose requests were ended may take to leave, before they are left to themselves."""


def in_threads(
    call: Callable[[int], T], count: int, limit: Callable[[int], int], *, return_exceptions: bool = False
) -> Generator[tuple[int, T | Exception], None, None]:
    """``call(index)`` for each index, at most ``limit(now)`` at once, each in a copy of the caller's context.

    Yields ``(index, value)`` as each call ends. With ``return_exceptions`` an error takes the place of its value;
    without, the first one ends the others.

    Raises:
        EngineError: not one thread could be started.
    """
    scope = CancelScope()
    context = contextvars.copy_context()
    context.run(scope.enter)
    indexes = iter(range(count))
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    threads: list[threading.Thread] = []
    guard = threading.Lock()

    def work() -> None:
        for index in indexes:
            if scope.is_cancelled:
                return
            try:
                ended.put((index, context.copy().run(call, index), None))
            except BaseException as exc:
                is_answer = return_exceptions and isinstance(exc, Exception)
                ended.put((index, exc, None) if is_answer else (index, None, exc))
            if has_left():
                return

    def has_left() -> bool:
        with guard:  # never all of them
            me = threading.current_thread()
            is_spare = len(threads) > limit(len(threads)) and me in threads
            if is_spare:
                threads.remove(me)
            return is_spare

    try:
        for answered in range(count):
            _start(work, min(limit(len(threads)), count - answered), threads)
            index, value, error = ended.get()
            if error is not None:
                raise error
            yield index, value
    except BaseException:
        scope.cancel()
        _leave(threads)
        raise


def _start(work: Callable[[], None], count: int, threads: list[threading.Thread]) -> None:
    try:
        while len(threads) < count:
            threads.append(start_thread(work, "vllm-local-batch", "a batch"))
    except EngineError:
        if not threads:
            raise


def _leave(threads: Iterable[threading.Thread]) -> None:
    until = time.monotonic() + LEAVE_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def on_own_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on a new event loop in a new thread.

    An app's callbacks, which may ask a model themselves, then block no other request, and this thread's own loop, which
    runs in a notebook, is not touched.

    Raises:
        EngineError: no thread could be started.
    """
    context = contextvars.copy_context()
    ended: Future[T] = Future()
    is_left = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def cancellable() -> T:
        task = asyncio.ensure_future(coroutine)
        running.append((asyncio.get_running_loop(), task))
        if is_left.is_set():
            task.cancel()
        return await task

    def work() -> None:
        try:
            ended.set_result(context.run(asyncio.run, cancellable()))
        except BaseException as exc:
            ended.set_exception(exc)

    threads: list[threading.Thread] = []
    try:
        try:
            _start(work, 1, threads)
        except EngineError:
            coroutine.close()
            raise
        return ended.result()
    except BaseException:  # Ctrl-C reaches the thread that waits only
        is_left.set()
        for loop, task in running:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                loop.call_soon_threadsafe(task.cancel)
        _leave(threads)
        raise


async def in_tasks(
    call: Callable[[int], Awaitable[T]], count: int, limit: Callable[[int], int], *, return_exceptions: bool = False
) -> AsyncGenerator[tuple[int, T | Exception], None]:
    """As ``in_threads``, in tasks of the running event loop."""
    tasks = _Tasks(call, count, limit, goes_on=return_exceptions)
    tasks.begin()
    try:
        for _ in range(count):
            index, task = await tasks.ended.get()
            try:
                value = task.result()
            except Exception as exc:
                if not return_exceptions:
                    raise
                yield index, exc
            else:
                yield index, value
    finally:
        await tasks.cancel()


class _Tasks(Generic[T]):
    """One for each index, in a context of its own; the next begins as soon as one ends."""

    def __init__(
        self, call: Callable[[int], Awaitable[T]], count: int, limit: Callable[[int], int], *, goes_on: bool
    ) -> None:
        self._call = call
        self._limit = limit
        self._goes_on = goes_on
        self._indexes: Iterator[int] = iter(range(count))
        self._running: set[asyncio.Future[T]] = set()
        self.ended: asyncio.Queue[tuple[int, asyncio.Future[T]]] = asyncio.Queue()

    def begin(self) -> None:
        """As many as there may be."""
        while len(self._running) < self._limit(len(self._running)):
            index = next(self._indexes, None)
            if index is None:
                return
            task = asyncio.ensure_future(self._call(index))
            self._running.add(task)
            task.add_done_callback(partial(self._end, index))

    def _end(self, index: int, task: asyncio.Future[T]) -> None:
        self._running.discard(task)
        self.ended.put_nowait((index, task))
        has_failed = task.cancelled() or task.exception() is not None
        if self._goes_on or not has_failed:
            self.begin()

    async def cancel(self) -> None:
        """Return when none runs any more."""
        self._indexes = iter(())
        left = list(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def all_in_tasks(
    call: Callable[[int], Awaitable[Any]], count: int, limit: Callable[[int], int], *, return_exceptions: bool = False
) -> list[Any]:
    """The values of ``in_tasks``, in the order of the indexes."""
    values: list[Any] = [None] * count
    async with aclosing(in_tasks(call, count, limit, return_exceptions=return_exceptions)) as ended:
        async for index, value in ended:
            values[index] = value
    return values
