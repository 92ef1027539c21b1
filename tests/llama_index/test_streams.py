"""A stream that is left ends what it reads from, whoever still holds it, and without the garbage collector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from llama_index_vllm_local import VLLM
from llama_index_vllm_local._streams import AsyncResponseStream, ResponseStream
from shared_engine import GenerationChunk
from tests.support.sources import Source, no_garbage_collection

LLM = VLLM(model="org/name", is_chat_model=True)
MESSAGES = [ChatMessage(content="Hi")]


class Letter(BaseModel):
    letter: str = "a"


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    with no_garbage_collection():
        yield


@pytest.fixture
def source() -> Source:
    return Source()


def text_of(chunk: GenerationChunk) -> str:
    return chunk.text


@pytest.mark.slow
def test_a_stream_gives_a_response_for_each_piece(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    assert next(stream) == "a"
    assert list(stream) == ["b", "c"]
    assert source.closed
    assert list(stream) == []


@pytest.mark.slow
def test_leaving_the_loop_closes_the_source_though_the_stream_is_still_held(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    for _ in stream:
        break
    assert source.closed


@pytest.mark.slow
def test_closing_the_stream_closes_the_source(source: Source) -> None:
    stream = ResponseStream(source.chunks(), text_of)
    next(stream)
    stream.close()
    assert source.closed


@pytest.mark.slow
async def test_an_async_stream_gives_a_response_for_each_piece(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    assert await anext(stream) == "a"
    assert [text async for text in stream] == ["b", "c"]
    assert source.closed
    assert [text async for text in stream] == []


@pytest.mark.slow
async def test_leaving_the_async_loop_closes_the_source_though_the_stream_is_still_held(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    async for _ in stream:
        break
    await source.is_closed_soon()


@pytest.mark.slow
async def test_closing_the_async_stream_closes_the_source(source: Source) -> None:
    stream = AsyncResponseStream(source.achunks(), text_of)
    await anext(stream)
    await stream.aclose()
    assert source.closed


# ---- the endpoints


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source(['{"letter": "a', 'b", "more"', ": 1}"])
    source.is_the_engine(monkeypatch)
    return source


SYNC: dict[str, Any] = {
    "stream_chat": lambda: LLM.stream_chat(MESSAGES),
    "stream_complete": lambda: LLM.stream_complete("Hi"),
    "stream_complete, formatted": lambda: LLM.stream_complete("Hi", formatted=True),
    "stream_chat, structured": lambda: LLM.as_structured_llm(Letter).stream_chat(MESSAGES),
    "stream_complete, structured": lambda: LLM.as_structured_llm(Letter).stream_complete("Hi"),
    "stream_structured_predict": lambda: LLM.stream_structured_predict(Letter, PromptTemplate("Hi")),
}
ASYNC: dict[str, Any] = {
    "astream_chat": lambda: LLM.astream_chat(MESSAGES),
    "astream_complete": lambda: LLM.astream_complete("Hi"),
    "astream_complete, formatted": lambda: LLM.astream_complete("Hi", formatted=True),
    "astream_chat, structured": lambda: LLM.as_structured_llm(Letter).astream_chat(MESSAGES),
    "astream_complete, structured": lambda: LLM.as_structured_llm(Letter).astream_complete("Hi"),
    "astream_structured_predict": lambda: LLM.astream_structured_predict(Letter, PromptTemplate("Hi")),
}


@pytest.mark.slow
@pytest.mark.parametrize("ask", SYNC.values(), ids=SYNC)
def test_closing_a_stream_of_an_endpoint_closes_that_of_the_engine(engine: Source, ask: Any) -> None:
    stream = ask()
    next(stream)
    stream.close()
    assert engine.closed


@pytest.mark.slow
@pytest.mark.parametrize("ask", SYNC.values(), ids=SYNC)
def test_leaving_the_loop_over_an_endpoint_closes_the_stream_of_the_engine(engine: Source, ask: Any) -> None:
    for _ in ask():
        break
    assert engine.closed


@pytest.mark.parametrize("ask", ASYNC.values(), ids=ASYNC)
@pytest.mark.slow
async def test_closing_an_asynchronous_stream_of_an_endpoint_closes_that_of_the_engine(
    engine: Source, ask: Any
) -> None:
    """LlamaIndex's decorators close nothing: the event loop does, as soon as it runs again."""
    stream = await ask()
    await anext(stream)
    await stream.aclose()
    await engine.is_closed_soon()


@pytest.mark.parametrize("ask", ASYNC.values(), ids=ASYNC)
@pytest.mark.slow
async def test_leaving_the_loop_over_an_asynchronous_endpoint_closes_the_stream_of_the_engine(
    engine: Source, ask: Any
) -> None:
    async for _ in await ask():
        break
    await engine.is_closed_soon()
