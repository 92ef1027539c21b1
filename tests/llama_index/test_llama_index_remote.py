"""VLLM against a remote server: what is sent, what comes through, what ends when the caller leaves."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from aiohttp import web
from llama_index.core.base.llms.types import ThinkingBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from shared_engine import AuthenticationError, InvalidInputError, RateLimitError, ServerError
from shared_engine.params import THINKING_SWITCHES, SamplingFields
from shared_engine.request.bodies import completion_body, encode
from tests.llama_index.ways import ENDPOINTS, STREAMS, alist, given_to, text_of
from tests.support.parameters import SENT
from tests.support.remote_server import RemoteServer, chat_answer
from tests.support.scripted import answers

SECRET = "sk-very-secret"
MESSAGES = [ChatMessage(role="user", content="Hello")]
ABORT_S = 10


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


# ---- a call's parameters and the constructor's

ON, OFF = dict.fromkeys(THINKING_SWITCHES, True), dict.fromkeys(THINKING_SWITCHES, False)
JSON = {"response_format": {"type": "json_object"}}
REGEX = {"structured_outputs": {"regex": "a+"}}


@pytest.mark.parametrize(
    ("constructor", "call", "sent"),
    [
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.1}, {"temperature": 0.1, "top_p": 0.9}),
        ({"stop": ["a"], "seed": 1}, {"stop": "b"}, {"stop": "b", "seed": 1}),
        ({"logprobs": 2}, {"logprobs": False}, {}),
        ({"logprobs": True}, {"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"enable_thinking": True}, {"enable_thinking": False}, {"chat_template_kwargs": OFF}),
        ({"reasoning_effort": "high"}, {"enable_thinking": False}, {"chat_template_kwargs": OFF}),
        (
            {"enable_thinking": False},
            {"reasoning_effort": "low"},
            {"reasoning_effort": "low", "chat_template_kwargs": ON},
        ),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"x": 1}},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"chat_template_kwargs": {"x": 1, "enable_thinking": False}},
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"enable_thinking": False, "x": 1}}},
            {"enable_thinking": True},
            {"chat_template_kwargs": {"x": 1, **ON}},
        ),
        (REGEX, {}, REGEX),
        (REGEX, JSON, JSON),
        (REGEX, {"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": {"choice": ["a"]}}),
        (REGEX, {"extra_body": JSON}, JSON),
        ({"extra_body": {"a": 1, "b": 1}}, {"extra_body": {"b": 2, "c": 2}}, {"a": 1, "b": 2, "c": 2}),
    ],
)
def test_a_call_wins_over_the_constructor_under_whichever_name(
    server: RemoteServer, constructor: dict[str, Any], call: dict[str, Any], sent: dict[str, Any]
) -> None:
    VLLM(base_url=server.url, **constructor).chat(MESSAGES, **call)
    body = server.requests[-1][1]
    assert body == {"model": "served", "messages": body["messages"], **sent}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_sends_the_parameters_of_its_call(llm: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, "Hi")
    call = {"max_tokens": 5, "enable_thinking": False, "extra_body": {"priority": 1}, **REGEX}
    ENDPOINTS[endpoint](llm, **call)
    body = server.requests[-1][1]
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if endpoint in STREAMS else {}
    assert body == {
        "model": "served", "messages": body["messages"], "temperature": 0.5, "max_tokens": 5, "priority": 1,
        "chat_template_kwargs": OFF, **REGEX, **streamed,
    }  # fmt: skip


def test_two_forms_of_an_answer_are_refused(llm: VLLM) -> None:
    with pytest.raises(InvalidInputError, match="response_format and structured_outputs both constrain"):
        llm.chat(MESSAGES, **JSON, **REGEX)


@pytest.mark.parametrize("name", [name for name in SENT if name in SamplingFields.model_fields])
def test_each_parameter_is_a_field_and_a_keyword(name: str) -> None:
    default, value = SENT[name]
    llm = VLLM(model="Qwen/Qwen3-4B", **{name: default})
    for call, sent in (({}, default), ({name: value}, value)):
        request = llm._completion_request("Hi", True, call)
        body = json.loads(encode(completion_body(request.prompt, request.params)))
        assert body == {"prompt": "Hi", name: sent}


@pytest.mark.parametrize(
    "constructor",
    [
        {"enable_thinking": False},
        {"reasoning_effort": "low", "chat_template_kwargs": {"x": 1}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ],
)
def test_formatted_text_has_no_chat_template_to_tell_of_thinking(constructor: dict[str, Any]) -> None:
    llm = VLLM(model="Qwen/Qwen3-4B", min_p=0.1, **constructor)
    request = llm._completion_request("Hi", True, {"max_tokens": 5})
    assert completion_body(request.prompt, request.params) == {"prompt": "Hi", "min_p": 0.1, "max_tokens": 5}


@pytest.mark.parametrize(
    "call", [{"enable_thinking": True}, {"reasoning_effort": "low"}, {"chat_template_kwargs": {"x": 1}}]
)
def test_asking_formatted_text_to_think_is_refused(llm: VLLM, call: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="is for the chat template"):
        llm.complete("Hi", formatted=True, **call)


# ---- what can't be asked


async def begun(llm: VLLM, endpoint: str, asked: Any, **call: Any) -> None:
    """Call an endpoint, and read nothing of its stream."""
    given = getattr(llm, endpoint)(asked, **call)
    if endpoint.startswith("a"):
        await given


NO_PROMPTS = [
    ("", "prompt is empty"),
    (5, "prompt must be a string, got int"),
    (None, "prompt must be a string, got NoneType"),
]
NO_CONVERSATIONS = [
    ([], "empty conversation"),
    ([{"role": "user", "content": "Hello"}], "must be a ChatMessage, got dict"),
]


@pytest.mark.parametrize(
    ("endpoint", "asked", "message"),
    [
        (endpoint, asked, message)
        for endpoint in ENDPOINTS
        for asked, message in (NO_PROMPTS if endpoint.endswith("complete") else NO_CONVERSATIONS)
    ],
)
async def test_what_is_no_prompt_or_conversation_is_refused_at_the_call(
    llm: VLLM, server: RemoteServer, endpoint: str, asked: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        await begun(llm, endpoint, asked)
    assert server.requests == []


@pytest.mark.parametrize("endpoint", STREAMS)
@pytest.mark.parametrize(
    ("constructor", "call"),
    [({}, {"n": 2}), ({}, {"extra_body": {"n": 2}}), ({"extra_body": {"n": 2}}, {}), ({}, {"extra_body": {"n": "2"}})],
)
async def test_several_answers_cannot_be_streamed(
    server: RemoteServer, endpoint: str, constructor: dict[str, Any], call: dict[str, Any]
) -> None:
    llm = VLLM(base_url=server.url, **constructor)
    with pytest.raises(InvalidInputError, match="LlamaIndex streams one answer"):
        await begun(llm, endpoint, given_to(endpoint), **call)
    assert server.requests == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_images_beside_the_text_are_refused_with_where_they_belong(llm: VLLM, endpoint: str) -> None:
    with pytest.raises(InvalidInputError, match="image_documents: give images to chat, as ImageBlocks"):
        ENDPOINTS[endpoint](llm, image_documents=["cat.png"])


class NamedMessage(ChatMessage):
    """As apps make them, with something of their own."""

    author: str = "Ann"


def test_messages_of_a_derived_class_are_sent_as_messages(llm: VLLM, server: RemoteServer) -> None:
    llm.chat([NamedMessage(role="user", content="Hello")])
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "Hello"}]


# ---- many at once

MANY = 100
WAIT_S = 20


def answers_all_at_once(server: RemoteServer, count: int) -> None:
    """Answer nobody before ``count`` requests are there: who asks one after the other waits in vain."""
    there, all_there, answer = [0], asyncio.Event(), server.handler

    async def handler(request: web.Request) -> web.StreamResponse:
        there[0] += 1
        if there[0] == count:
            all_there.set()
        await asyncio.wait_for(all_there.wait(), WAIT_S)
        return await answer(request)

    server.handler = handler


@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if name.startswith("a")])
@pytest.mark.slow
async def test_concurrent_calls_are_all_in_flight(llm: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, "Hi")
    answers_all_at_once(server, MANY)

    async def ask() -> Any:
        call = getattr(llm, endpoint)(given_to(endpoint))
        return (await alist(call))[-1] if endpoint in STREAMS else await call

    found = await asyncio.gather(*(ask() for _ in range(MANY)))
    assert [text_of(response) for response in found] == ["Hi"] * MANY
    assert len({response.raw["id"] for response in found}) == MANY


@pytest.mark.parametrize("endpoint", [name for name in ENDPOINTS if not name.startswith("a")])
def test_calls_of_several_threads_are_all_in_flight(llm: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, "Hi")
    answers_all_at_once(server, 8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ENDPOINTS[endpoint](llm)[-1], range(8)))
    assert [text_of(response) for response in found] == ["Hi"] * 8


# ---- thinking


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_streamed_thought_comes_in_pieces_before_the_text(llm: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, {"reasoning": "2 + 3 is 5, I think.", "content": "It is five, surely."})
    pieces = ENDPOINTS[endpoint](llm)
    thoughts = [piece.additional_kwargs.get("thinking_delta", "") for piece in pieces]
    assert "".join(thoughts) == "2 + 3 is 5, I think."
    assert len([thought for thought in thoughts if thought]) > 1
    assert not any(thought and piece.delta for thought, piece in zip(thoughts, pieces, strict=True))
    last = pieces[-1]
    assert text_of(last) == "It is five, surely."
    assert last.raw["choices"][0]["reasoning"] == "2 + 3 is 5, I think."
    if endpoint.endswith("chat"):
        assert last.message.blocks[0] == ThinkingBlock(content="2 + 3 is 5, I think.")


# ---- leaving


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
