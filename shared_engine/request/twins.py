"""The form for threads of an asynchronous method, from its one definition.

    async def achat(self, messages: Sequence[Message], ...) -> GenerationResult: ...
    chat = blocking(achat)

Names, types and defaults stay: for type checkers by ParamSpec, for ``help`` and ``inspect`` by the signature.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, TypeVar

from shared_engine.request.io_loop import iterate_sync, run_sync

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")

_END_S = 30
"""For what is cancelled to end; a child that was forked meanwhile would wait for ever."""


def blocking(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], T]:
    """``method`` on the background loop, waited for in the calling thread; also where that one's own loop runs."""

    @functools.wraps(method)
    def waiting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_sync(method(self, *args, **kwargs))

    return _named(waiting, method)


def reporting(method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[S, P], T]:
    """As ``blocking``, of a method with ``on_progress``, which is called in the calling thread: what shows progress in
    a web app or a notebook often has to be, and may ask the engine something.
    """

    @functools.wraps(method)
    def waiting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        tell: Any = kwargs.get("on_progress")
        if tell is None:
            return run_sync(method(self, *args, **kwargs))
        results: list[T] = []
        is_over = threading.Event()

        async def steps() -> AsyncGenerator[int, None]:
            told: asyncio.Queue[int | None] = asyncio.Queue()
            given: Any = {**kwargs, "on_progress": told.put_nowait}
            task = asyncio.ensure_future(method(self, *args, **given))
            task.add_done_callback(lambda _: told.put_nowait(None))
            task.add_done_callback(lambda _: is_over.set())
            try:
                while (count := await told.get()) is not None:
                    yield count
                results.append(await task)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        with contextlib.closing(iterate_sync(steps())) as counts:
            for count in counts:
                try:
                    tell(count)
                except BaseException:
                    counts.close()
                    is_over.wait(_END_S)  # it holds what the next call may need, such as a file
                    raise
        return results[0]

    return _named(waiting, method)


def iterating(
    method: Callable[Concatenate[S, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[S, P], Generator[T, None, None]]:
    """What ``method`` returns, as a generator for the calling thread. Leaving it early ends the asynchronous one."""

    @functools.wraps(method)
    def iterating_method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return iterate_sync(method(self, *args, **kwargs))

    named = _named(iterating_method, method)
    item = str(inspect.signature(method).return_annotation).removeprefix("AsyncGenerator[").removesuffix(", None]")
    _give_return_type(named, f"Generator[{item}, None, None]")
    return named


def _named(form: Callable[P, T], method: Callable[..., Any]) -> Callable[P, T]:
    own = method.__name__.removeprefix("a")
    form.__name__ = own
    form.__qualname__ = method.__qualname__.removesuffix(method.__name__) + own
    form.__doc__ = f"The blocking form of ``{method.__name__}``; see there.\n"
    return form


def _give_return_type(form: Callable[..., Any], annotation: str) -> None:
    signature = inspect.signature(form).replace(return_annotation=annotation)
    form.__annotations__ = {**form.__annotations__, "return": annotation}
    form.__signature__ = signature  # type: ignore[attr-defined]
