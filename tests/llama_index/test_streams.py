"""A stream that is left ends what it reads from, whoever still holds a reference to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from llama_index_vllm_local._streams import AsyncResponseStream, ResponseStream
from shared_engine import GenerationChunk

CHUNKS = [GenerationChunk(text=letter) for letter in "abc"]


class Source:
    def __init__(self) -> None:
        self.closed = False

    def chunks(self) -> Iterator[GenerationChunk]:
        try:
            yield from CHUNKS
        finally:
            self.closed = True

    async def achunks(self) -> AsyncIterator[GenerationChunk]:
        try:
            for chunk in CHUNKS:
                yield chunk
        finally:
            self.closed = True


@pytest.fixture
def source() -> Source:
    return Source()


def text_of(chunk: GenerationChunk) -> str:
    return chunk.text


def test_a_stream_gives_a_response_for_each_piece(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    assert next(stream) == "a"
    assert list(stream) == ["b", "c"]
    assert source.closed
    assert list(stream) == []


def test_leaving_the_loop_closes_the_source_though_the_stream_is_still_held(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    for _ in stream:
        break
    assert source.closed


def test_closing_the_stream_closes_the_source(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    next(stream)
    stream.close()
    assert source.closed


async def test_an_async_stream_gives_a_response_for_each_piece(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    assert await anext(stream) == "a"
    assert [text async for text in stream] == ["b", "c"]
    assert source.closed
    assert [text async for text in stream] == []


async def test_leaving_the_async_loop_closes_the_source_though_the_stream_is_still_held(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    async for _ in stream:
        break
    await asyncio.sleep(0)  # the loop closes what was left, when it is its turn
    await asyncio.sleep(0)
    assert source.closed


async def test_closing_the_async_stream_closes_the_source(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    await anext(stream)
    await stream.aclose()
    assert source.closed
