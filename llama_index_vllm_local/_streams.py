"""Streams of chunks -> streams of responses whose request ends when the caller stops reading."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Generic, TypeVar

from shared_engine.results import GenerationChunk

Response = TypeVar("Response")


class ResponseStream(Generator[Response, None, None], Generic[Response]):
    """A response for each chunk. Leaving it early, by ``break`` or ``close``, closes ``chunks``: the request ends.

    LlamaIndex's callback decorators read the generator they are given in a ``for`` loop and never close it; and a
    handler that stores the exception they report (LlamaDebugHandler) keeps it alive, with its request. So that loop is
    given the only reference to the generator inside: it goes when the loop does.
    """

    def __init__(
        self, chunks: Generator[GenerationChunk, None, None], respond: Callable[[GenerationChunk], Response]
    ) -> None:
        self._responses = _responses(chunks, respond)

    def __iter__(self) -> Generator[Response, None, None]:
        responses, self._responses = self._responses, _nothing()
        return responses

    def send(self, value: None) -> Response:
        return self._responses.send(value)

    def throw(self, *exception: Any) -> Response:
        return self._responses.throw(*exception)


class AsyncResponseStream(AsyncGenerator[Response, None], Generic[Response]):
    """See ``ResponseStream``."""

    def __init__(
        self, chunks: AsyncGenerator[GenerationChunk, None], respond: Callable[[GenerationChunk], Response]
    ) -> None:
        self._responses = _aresponses(chunks, respond)

    def __aiter__(self) -> AsyncGenerator[Response, None]:
        responses, self._responses = self._responses, _anothing()
        return responses

    async def asend(self, value: None) -> Response:
        return await self._responses.asend(value)

    async def athrow(self, *exception: Any) -> Response:
        return await self._responses.athrow(*exception)


def _responses(
    chunks: Generator[GenerationChunk, None, None], respond: Callable[[GenerationChunk], Response]
) -> Generator[Response, None, None]:
    with contextlib.closing(chunks):
        for chunk in chunks:
            yield respond(chunk)


async def _aresponses(
    chunks: AsyncGenerator[GenerationChunk, None], respond: Callable[[GenerationChunk], Response]
) -> AsyncGenerator[Response, None]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            yield respond(chunk)


def _nothing() -> Generator[Any, None, None]:
    yield from ()


async def _anothing() -> AsyncGenerator[Any, None]:
    empty: tuple[Any, ...] = ()
    for item in empty:
        yield item
