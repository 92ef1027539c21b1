"""VLLM against a server somebody else runs: what is sent, what comes through, what ends when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import web
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from shared_engine import AuthenticationError, RateLimitError, ServerError
from tests.remote_server import RemoteServer, chat_answer, running_server

SECRET = "sk-very-secret"
MESSAGES = [ChatMessage(role="user", content="Hello")]
ABORT_S = 10


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def llm(server: RemoteServer) -> VLLM:
    return VLLM(base_url=server.url + "/v1", api_key=SECRET, temperature=0.5, max_retries=0)


def test_the_request_holds_messages_parameters_and_key(llm: VLLM, server: RemoteServer) -> None:
    assert llm.chat(MESSAGES, max_tokens=5, extra_body={"chat_template_kwargs": {"x": 1}}).message.content == "Hi"
    ((headers, body),) = server.requests
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body == {
        "model": "served",
        "messages": [{"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        "max_tokens": 5,
        "chat_template_kwargs": {"x": 1},
    }


def test_no_event_shows_the_key(llm: VLLM, events: list[BaseEvent]) -> None:
    llm.chat(MESSAGES)
    llm.complete("Hello")
    assert len(events) >= 4
    assert not any(SECRET in f"{event!r} {event.model_dump()}" for event in events)


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (429, RateLimitError), (500, ServerError)])
def test_errors_of_the_server_come_through_as_the_engines_own(
    llm: VLLM, server: RemoteServer, status: int, error: type[Exception]
) -> None:
    server.fails(status, message="the reason")
    with pytest.raises(error, match="the reason"):
        llm.chat(MESSAGES)
    with pytest.raises(error, match="the reason"):
        list(llm.stream_complete("Hello"))
    with pytest.raises(error, match="the reason"):
        asyncio.run(llm.acomplete("Hello"))


def test_reasoning_of_the_server_becomes_a_thinking_block(llm: VLLM, server: RemoteServer) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        answer = chat_answer("Five.")
        answer["choices"][0]["message"]["reasoning"] = "2 + 3 = 5"
        return web.json_response(answer)

    server.handler = handler
    message = llm.chat(MESSAGES).message
    assert message.blocks[0] == ThinkingBlock(content="2 + 3 = 5")
    assert message.content == "Five."
    llm.chat([*MESSAGES, message])
    assert server.requests[-1][1]["messages"][1] == {
        "role": "assistant", "content": "Five.", "reasoning": "2 + 3 = 5",
    }  # fmt: skip


@pytest.fixture
def debugged_llm(llm: VLLM) -> VLLM:
    """With a handler that stores the exception by which LlamaIndex reports that a stream was left."""
    llm.callback_manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    return llm


def test_leaving_a_stream_aborts_its_request_whatever_handlers_keep(debugged_llm: VLLM, server: RemoteServer) -> None:
    server.streams("one", "two", then="hang")
    for response in debugged_llm.stream_chat(MESSAGES):
        assert response.delta == "one"
        break
    assert server.aborted.wait(ABORT_S)


async def test_leaving_an_async_stream_aborts_its_request_whatever_handlers_keep(
    debugged_llm: VLLM, server: RemoteServer
) -> None:
    server.streams("one", "two", then="hang")
    async for response in await debugged_llm.astream_complete("Hello"):
        assert response.delta == "one"
        break
    assert await asyncio.to_thread(server.aborted.wait, ABORT_S)


async def test_closing_an_async_stream_aborts_its_request(llm: VLLM, server: RemoteServer) -> None:
    server.streams("one", "two", then="hang")
    stream = await llm.astream_chat(MESSAGES)
    await anext(stream)
    await stream.aclose()
    assert await asyncio.to_thread(server.aborted.wait, ABORT_S)
