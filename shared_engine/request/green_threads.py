"""The background loop where gevent or eventlet stand in for threads: it runs in the app's own thread, by turns with it.

asyncio notes for each thread which loop runs in it, and which loop's asynchronous generators begin there. Left as they
are while others have their turn, these would keep all other code of the app from using asyncio: our loop gives them
back whenever it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")
POLL_S = 0.01


def are_green() -> bool:
    """Whether what ``threading`` starts are greenlets, as under gunicorn's and Celery's workers of these kinds."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    return (gevent is not None and gevent.is_module_patched("threading")) or (
        eventlet is not None and eventlet.is_monkey_patched("thread")
    )


@contextlib.contextmanager
def turn_of_others() -> Iterator[None]:
    """Around what lets other greenlets run, in code that may be running on a ``GreenLoop``."""
    running = asyncio._get_running_loop()
    with running.left() if isinstance(running, GreenLoop) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def held(lock: threading.Lock) -> Iterator[None]:
    """``lock``, which may have been made before greenlets took the place of threads: to wait for it would stop all."""
    while not lock.acquire(blocking=not are_green()):
        time.sleep(POLL_S)
    try:
        yield
    finally:
        lock.release()


class GreenLoop(asyncio.SelectorEventLoop):
    """A loop for a greenlet. Not of the app's policy: uvloop waits without letting others run."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()  # gevent's and eventlet's own, which let others run
        super().__init__(selector)
        self._wait = selector.select
        self._made_in = os.getpid()
        selector.select = self._select  # type: ignore[method-assign]
        self._take_over()

    def run(self) -> None:
        """Run for ever, whichever loop this thread is in just now."""
        self._take_over()
        asyncio._set_running_loop(None)
        self.run_forever()

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """What other greenlets of this thread have noted holds meanwhile."""
        own = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self._others)
        sys.set_asyncgen_hooks(*self._others_hooks)
        try:
            yield
        finally:
            self._take_over()
            asyncio._set_running_loop(self)
            sys.set_asyncgen_hooks(*own)

    def _take_over(self) -> None:
        self._others = asyncio._get_running_loop()
        self._others_hooks = sys.get_asyncgen_hooks()

    def _select(self, timeout: float | None = None) -> Any:
        with self.left():
            events = self._wait(timeout)
            while os.getpid() != self._made_in:
                threading.Event().wait()  # in a forked child: what this loop waits for is for the parent to read
        return events

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Arguments]], T], *args: *Arguments
    ) -> asyncio.Future[T]:
        with self.left():  # a thread begins before this returns
            return super().run_in_executor(executor, func, *args)
