"""Threads: daemons, started as long as Python starts any; a call that blocks in one, while the event loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from shared_engine.errors import EngineError
from shared_engine.request.green_threads import turn_of_others

T = TypeVar("T")


def refuse_at_exit() -> None:
    """Refuse what would wait for another thread, where the interpreter has stopped them: in a ``__del__`` at its end.

    Raises:
        EngineError: it has.
    """
    if sys.is_finalizing():
        raise EngineError("no request can be made any more: the interpreter is shutting down")


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of the coroutine that calls this.

    Raises:
        EngineError: it is not one of asyncio's: trio runs it, or somebody by hand.
    """
    running = asyncio._get_running_loop()
    if running is None:
        raise EngineError(
            "asynchronous calls need asyncio, which does not run here: under trio make the blocking call in a thread, "
            "as in `await trio.to_thread.run_sync(llm.invoke, messages)`"
        )
    return running


def start_thread(target: Callable[[], object], name: str, purpose: str) -> threading.Thread:
    """A daemon thread: it keeps no app from ending.

    Raises:
        EngineError: Python starts no thread any more.
    """
    refuse_at_exit()  # Python 3.11 would wait for ever for the thread to begin
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        with turn_of_others():
            thread.start()
    except RuntimeError as exc:
        raise EngineError(f"no thread could be started for {purpose}: {exc}") from exc
    return thread


async def in_a_thread(call: Callable[[], T]) -> T:
    """As asyncio.to_thread, which refuses while the interpreter shuts down, as in an app's atexit handler.

    Where this Python starts no thread any more, the call is made here, and the loop waits.
    """
    refuse_at_exit()
    loop = running_loop()
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
        start_thread(run, "vllm-local-thread", "a call that blocks")
    except EngineError:
        return call()
    return await done
