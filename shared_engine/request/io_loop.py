"""The one background event loop of this process, for synchronous callers. Fork-safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any, TypeVar

from shared_engine.errors import EngineError, ServerConnectionError

T = TypeVar("T")


_guard = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_inherited: list[asyncio.AbstractEventLoop | None] = []


def io_loop() -> asyncio.AbstractEventLoop:
    """The loop, started on first use in a daemon thread.

    It is never stopped: the app's atexit handlers and last threads may use it up to the end of the interpreter, which
    freezes the thread where it stands. What it held open is closed by the kernel, and vLLM ends requests in flight.

    Raises:
        EngineError: Python starts no thread any more.
    """
    global _loop
    with _guard:
        if _loop is None:
            loop = asyncio.new_event_loop()
            try:
                threading.Thread(target=loop.run_forever, name="vllm-local-io", daemon=True).start()
            except RuntimeError as exc:
                loop.close()
                raise EngineError(f"no thread could be started for synchronous requests: {exc}") from exc
            _loop = loop
        return _loop


def _forget_in_child() -> None:
    """A forked child has no thread that runs the parent's loop: it starts its own."""
    global _loop, _guard
    _guard = threading.Lock()
    _inherited.append(_loop)  # closing it would take descriptors out of the epoll set that the parent waits on
    _loop = None


os.register_at_fork(after_in_child=_forget_in_child)


class CancelScope:
    """Cancels what several threads wait for: one call of ``cancel`` ends their waiting and their requests.

    A thread belongs to it from ``enter`` on, in its own context.
    """

    def __init__(self) -> None:
        self._futures: set[Future[Any]] = set()
        self._is_cancelled = False
        self._guard = threading.Lock()

    def enter(self) -> None:
        _scope.set(self)

    def add(self, future: Future[Any]) -> None:
        with self._guard:
            self._futures.add(future)
            is_cancelled = self._is_cancelled
        future.add_done_callback(self._futures.discard)
        if is_cancelled:
            future.cancel()

    def cancel(self) -> None:
        """End what is waited for now, and what anybody in here would wait for later."""
        with self._guard:
            self._is_cancelled = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()


_scope: ContextVar[CancelScope | None] = ContextVar("vllm_local_cancel_scope", default=None)


def _begun(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[T]:
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    scope = _scope.get()
    if scope is not None:
        scope.add(future)
    return future


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the background loop and wait. Ctrl-C, or any exception in the waiting thread, cancels it."""
    try:
        loop = io_loop()
    except BaseException:
        coroutine.close()
        raise
    future = _begun(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
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

    loop = io_loop()
    future = _begun(pump(), loop)
    future.add_done_callback(tell_the_end)
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
            if loop is not _loop:  # nobody here would ever put another item
                raise ServerConnectionError("this stream belongs to the process that this one was forked from")
    finally:
        future.cancel()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
