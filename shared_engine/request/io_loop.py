"""The one background event loop of this process, for synchronous callers. Fork-safe.

Where greenlets stand in for threads, there is one in each thread of the kernel's that calls: a greenlet runs only while
its own thread waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from shared_engine.errors import EngineError, ServerConnectionError
from shared_engine.request.green_threads import GreenLoop, are_green
from shared_engine.request.threads import refuse_at_exit, start_thread

T = TypeVar("T")
Loop = TypeVar("Loop", bound=asyncio.AbstractEventLoop)


_guard = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_inherited: list[dict[int, asyncio.AbstractEventLoop]] = []
_ANY_THREAD = 0
_NAME, _PURPOSE = "vllm-local-io", "synchronous requests"


def io_loop() -> asyncio.AbstractEventLoop:
    """The loop, started on first use in a daemon thread.

    It is never stopped: the app's atexit handlers and last threads may use it up to the end of the interpreter, which
    freezes the thread where it stands. What it held open is closed by the kernel, and vLLM ends requests in flight.

    Raises:
        EngineError: no thread or file is left, or the interpreter has stopped all threads.
    """
    refuse_at_exit()
    if are_green():
        return _green_loop()
    with _guard:
        if _ANY_THREAD not in _loops:
            loop = _made(asyncio.new_event_loop)
            try:
                start_thread(loop.run_forever, _NAME, _PURPOSE)
            except EngineError:
                loop.close()
                raise
            _loops[_ANY_THREAD] = loop
        return _loops[_ANY_THREAD]


def _green_loop() -> asyncio.AbstractEventLoop:
    """Without the lock, which may be older than the greenlets, and would then stop them all: others have their turn
    only while the loop starts, and find it.
    """
    thread = threading.get_native_id()
    if thread not in _loops:
        _loops[thread] = loop = _made(GreenLoop)
        start_thread(loop.run, _NAME, _PURPOSE)
    return _loops[thread]


def _made(kind: Callable[[], Loop]) -> Loop:
    try:
        return kind()
    except OSError as exc:  # no file is left
        raise EngineError(f"no event loop could be made for {_PURPOSE}: {exc.strerror}") from exc


def _forget_in_child() -> None:
    """A forked child has no thread that runs the parent's loop: it starts its own."""
    global _loops, _guard
    _guard = threading.Lock()
    _inherited.append(_loops)  # closing them would take descriptors out of the epoll set that the parent waits on
    _loops = {}


os.register_at_fork(after_in_child=_forget_in_child)


class _Call(Generic[T]):
    """A coroutine for the background loop, and the thread that waits for it.

    ``cancel`` may come at any moment: Ctrl-C does, between any two steps of the waiting thread.

    Raises:
        EngineError: see ``io_loop``; or the thread that would wait is the loop's own.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        try:
            self.loop = io_loop()
            if asyncio._get_running_loop() is self.loop:
                raise EngineError(
                    "a blocking call was made on the event loop that runs all blocking calls, as by a logging handler "
                    "or a __del__ that ran there, and would never return: make it in a thread of its own"
                )
        except BaseException:
            coroutine.close()
            raise
        self.future: Future[T] = Future()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        scope = _scope.get()
        if scope is not None:
            scope.add(self)
        self.loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        if self.future.cancel():
            self.loop.call_soon_threadsafe(self._cancel)

    # ---- on the loop

    def _begin(self) -> None:
        if self.future.cancelled():
            self._coroutine.close()
            return
        self._task = self.loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.cancel()
        error = None if task.cancelled() else task.exception()
        if not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(task.result())
        else:
            self.future.set_exception(error)


class CancelScope:
    """Cancels what several threads wait for: one call of ``cancel`` ends their waiting and their requests.

    A context belongs to it from ``enter`` on.
    """

    def __init__(self) -> None:
        self._calls: set[_Call[Any]] = set()
        self.is_cancelled = False
        self._guard = threading.Lock()

    def enter(self) -> None:
        _scope.set(self)

    def add(self, call: _Call[Any]) -> None:
        with self._guard:
            self._calls.add(call)
            is_cancelled = self.is_cancelled
        call.future.add_done_callback(lambda _: self._calls.discard(call))
        if is_cancelled:
            call.cancel()

    def cancel(self) -> None:
        """End what is waited for now, and what anybody in here would wait for later."""
        self.is_cancelled = True
        with self._guard:
            calls = list(self._calls)
        for call in calls:
            call.cancel()


_scope: ContextVar[CancelScope | None] = ContextVar("vllm_local_cancel_scope", default=None)


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the background loop and wait. Ctrl-C, or any exception in the waiting thread, cancels it.

    Raises:
        EngineError: the interpreter ends, and has stopped the loop's thread; or this is the loop's thread.
    """
    call = _Call(coroutine)
    try:
        call.begin()
        return call.future.result()
    except BaseException:
        call.cancel()
        raise


_END = object()


def iterate_sync(iterator: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """Iterate an asynchronous generator from a thread. Leaving the loop early, or closing this, ends the generator."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def pump() -> None:
        async with contextlib.aclosing(iterator) as closing:
            async for item in closing:
                items.put(item)

    def tell_the_end(pumped: Future[None]) -> None:
        # Not in pump(), which never runs where it is cancelled before its first step.
        error = CancelledError() if pumped.cancelled() else pumped.exception()
        items.put(_END if error is None else _Failed(error))

    call = _Call(pump())
    try:
        call.future.add_done_callback(tell_the_end)
        call.begin()
        while (item := _next(items)) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
            if call.loop not in _loops.values():  # nobody here would ever put another item
                raise ServerConnectionError("this stream belongs to the process that this one was forked from")
    finally:
        call.cancel()


def _next(items: queue.SimpleQueue[Any]) -> Any:
    refuse_at_exit()  # nobody would ever put another item
    return items.get()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
