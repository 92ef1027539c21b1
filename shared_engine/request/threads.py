"""A call that blocks, in a thread of its own, while the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_a_thread(call: Callable[[], T]) -> T:
    """As asyncio.to_thread, which refuses while the interpreter shuts down, as in an app's atexit handler.

    Where this Python starts no thread any more, the call is made here, and the loop waits.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def succeed(value: T) -> None:
        if not done.cancelled():
            done.set_result(value)

    def fail(error: BaseException) -> None:
        if not done.cancelled():
            done.set_exception(error)

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            try:
                value = call()
            except BaseException as exc:
                loop.call_soon_threadsafe(fail, exc)
            else:
                loop.call_soon_threadsafe(succeed, value)

    try:
        threading.Thread(target=run, name="vllm-local-thread", daemon=True).start()
    except RuntimeError:
        return call()
    return await done
