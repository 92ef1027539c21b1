"""Each request has one definition and two forms: the same names, types and refusals."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from shared_engine import Engine, InvalidInputError
from shared_engine.request.twins import blocking, iterating, reporting

ASYNC = sorted(
    name
    for name in dir(Engine)
    if name.startswith("astream_") or (name.startswith("a") and inspect.iscoroutinefunction(getattr(Engine, name)))
)
FORMS = [(name, name.removeprefix("a")) for name in ASYNC]


class Counter:
    """Stands for an Engine."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.ended = 0

    async def aadd(self, a: int, /, *, b: int = 2) -> int:
        """Add them."""
        await asyncio.sleep(0)
        return a + b

    add = blocking(aadd)

    def astream_count(self, first: int = 0) -> AsyncGenerator[int, None]:
        if first > self.last:
            raise ValueError("first")
        return self._count(first)

    async def _count(self, first: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(first, self.last):
                yield number
                await asyncio.sleep(0)
        finally:
            self.ended += 1

    stream_count = iterating(astream_count)

    async def asum(self, *, on_progress: Callable[[int], object] | None = None) -> int:
        try:
            for number in range(self.last):
                await asyncio.sleep(0)
                if on_progress is not None:
                    on_progress(number)
        finally:
            await asyncio.sleep(0.05)
            self.ended += 1
        return self.last

    sum = reporting(asum)


async def test_the_blocking_form_gives_the_same_also_where_a_loop_runs() -> None:
    counter = Counter(3)
    assert counter.add(1, b=4) == await counter.aadd(1, b=4) == 5
    assert list(counter.stream_count(1)) == [number async for number in counter.astream_count(1)] == [1, 2]
    assert counter.ended == 2


def test_a_stream_refuses_at_the_call_and_ends_when_it_is_left() -> None:
    counter = Counter(1000)
    for stream in (counter.stream_count, counter.astream_count):
        with pytest.raises(ValueError, match="first"):
            stream(2000)
    with pytest.raises(StopIteration):
        next(counter.stream_count(1000))


def test_progress_is_told_in_the_calling_thread_which_may_ask_meanwhile() -> None:
    counter = Counter(3)
    told: list[Any] = []
    assert counter.sum(on_progress=lambda number: told.append((counter.add(number), threading.get_ident()))) == 3
    assert told == [(number + 2, threading.get_ident()) for number in range(3)]
    assert counter.sum() == 3


def test_what_fails_as_it_is_told_of_progress_ends_the_work() -> None:
    counter = Counter(10_000_000)
    with pytest.raises(ZeroDivisionError):
        counter.sum(on_progress=lambda number: 1 // (5 - number))
    assert counter.ended == 1, "what it held is free when the error comes"


def test_the_form_says_what_it_is() -> None:
    assert (Counter.add.__name__, Counter.add.__qualname__) == ("add", "Counter.add")
    assert "``aadd``" in (Counter.add.__doc__ or "")
    assert str(inspect.signature(Counter.add)) == "(self, a: 'int', /, *, b: 'int' = 2) -> 'int'"
    signature = inspect.signature(Counter.stream_count)
    assert str(signature) == "(self, first: 'int' = 0) -> 'Generator[int, None, None]'"
    assert not inspect.iscoroutinefunction(Counter.add)


@pytest.mark.parametrize(("name", "twin"), FORMS)
def test_every_asynchronous_method_of_an_engine_has_its_twin_with_the_same_parameters(name: str, twin: str) -> None:
    forms = [inspect.signature(getattr(Engine, form)) for form in (name, twin)]
    parameters = [
        [(each.name, each.kind, each.default, each.annotation) for each in form.parameters.values()][1:]
        for form in forms
    ]
    assert parameters[0] == parameters[1]
    assert forms[0].return_annotation.replace("AsyncGenerator[GenerationChunk, None]", "") == forms[
        1
    ].return_annotation.replace("Generator[GenerationChunk, None, None]", "")
    assert getattr(Engine, twin).__doc__


def test_these_are_all() -> None:
    assert [twin for _, twin in FORMS] == [
        "chat", "chat_batch", "close", "count_tokens", "embed", "embed_file", "embed_messages", "embed_sparse",
        "embed_tokens", "evict", "generate", "generate_batch",
        "is_ready", "load_adapter", "metrics", "plan_chunks", "rerank", "shutdown", "stats", "status", "stream_chat",
        "stream_generate", "token_strings", "tokenize", "unload_adapter", "warmup",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.astream_chat([]),
        lambda engine: engine.astream_chat([{"role": "user", "content": "Hi"}], temperature=-1),
        lambda engine: engine.astream_generate(""),
        lambda engine: engine.astream_generate("Hi", enable_thinking=True),
    ],
)
def test_a_bad_stream_is_refused_at_the_call_in_both_forms(call: Callable[[Any], object]) -> None:
    with pytest.raises(InvalidInputError):
        call(Engine(base_url="http://127.0.0.1:1"))
