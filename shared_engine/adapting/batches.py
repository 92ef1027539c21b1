"""Many calls at once, for the batches of an adapter: in threads, or in tasks of the running event loop.

The calls are an app's code too (callbacks, caches). The first error, Ctrl-C, or leaving the loop early ends the
requests that are still running. Knows nothing of prompts.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import aclosing
from typing import Any, TypeVar

from shared_engine.request.io_loop import CancelScope

T = TypeVar("T")


def in_threads(
    call: Callable[[int], T], count: int, limit: int, *, return_exceptions: bool = False
) -> Generator[tuple[int, T | Exception], None, None]:
    """``call(index)`` for each index, at most ``limit`` at once, each in a copy of the caller's context.

    Yields ``(index, value)`` as each call ends. With ``return_exceptions`` an error takes the place of its value;
    without, the first one ends the others.
    """
    scope = CancelScope()

    def in_scope(index: int) -> T | Exception:
        scope.enter()
        try:
            return call(index)
        except Exception as exc:
            if not return_exceptions:
                raise
            return exc

    with ThreadPoolExecutor(min(limit, count)) as executor:
        futures = {executor.submit(contextvars.copy_context().run, in_scope, index): index for index in range(count)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            scope.cancel()
            raise


async def in_tasks(
    call: Callable[[int], Awaitable[T]], count: int, limit: int, *, return_exceptions: bool = False
) -> AsyncGenerator[tuple[int, T | Exception], None]:
    """As ``in_threads``, in tasks of the running event loop."""
    slots = asyncio.Semaphore(limit)

    async def in_slot(index: int) -> tuple[int, T | Exception]:
        async with slots:
            try:
                return index, await call(index)
            except Exception as exc:
                if not return_exceptions:
                    raise
                return index, exc

    running = [asyncio.ensure_future(in_slot(index)) for index in range(count)]
    try:
        for completed in asyncio.as_completed(running):
            yield await completed
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def all_in_tasks(
    call: Callable[[int], Awaitable[Any]], count: int, limit: int, *, return_exceptions: bool = False
) -> list[Any]:
    """The values of ``in_tasks``, in the order of the indexes."""
    values: list[Any] = [None] * count
    async with aclosing(in_tasks(call, count, limit, return_exceptions=return_exceptions)) as ended:
        async for index, value in ended:
            values[index] = value
    return values
