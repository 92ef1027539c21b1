"""The one background event loop of this process, for callers that are not asynchronous. Fork-safe."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

_guard = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def io_loop() -> asyncio.AbstractEventLoop:
    """The loop, started on first use in a daemon thread."""
    global _loop
    with _guard:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="vllm-local-io", daemon=True).start()
        return _loop


def _forget_in_child() -> None:
    """A forked child has no thread that runs the parent's loop: it starts its own."""
    global _loop, _guard
    _guard = threading.Lock()
    _loop = None


def _close_at_exit() -> None:
    """Close what lives on the loop (connections) before the interpreter takes the thread away."""
    if _loop is not None and _loop.is_running():
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_loop.shutdown_asyncgens(), _loop).result(timeout=2)
        _loop.call_soon_threadsafe(_loop.stop)


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_forget_in_child)


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the background loop and wait. Ctrl-C, or any exception in the waiting thread, cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, io_loop())
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
        try:
            async with contextlib.aclosing(iterator) as closing:
                async for item in closing:
                    items.put(item)
            items.put(_END)
        except BaseException as exc:
            items.put(_Failed(exc))
            if not isinstance(exc, Exception):
                raise

    future = asyncio.run_coroutine_threadsafe(pump(), io_loop())
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        future.cancel()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
