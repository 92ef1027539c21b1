"""What a server sends beside the fields that we name stays reachable: whole and streamed, in every way to ask."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import pytest
from aiohttp import web
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._answers import to_chat_chunk
from llama_index_vllm_local import VLLM
from shared_engine import Engine, GenerationChunk
from shared_engine.request.answers import parse_result
from shared_engine.request.streams import ChunkReader
from tests.support.remote_server import RemoteServer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
Fields = dict[str, Any]
OF_CHOICE: Fields = {"token_ids": [5, 5, 6], "routed_experts": "AAEC", "refusal": "never", "citations": ["a", "b"]}
BESIDE: Fields = {
    "prompt_token_ids": [1, 2],
    "prompt_logprobs": [None, {"2": {"logprob": -0.5, "rank": 1, "decoded_token": "Hello"}}],
    "metrics": {"time_to_first_token_ms": 3.5, "queue_time_ms": 0},
    "system_fingerprint": "vllm-0.32.0-tp1",
    "provider": "somebody",
    "usage": {"cost": 0.25, "prompt_tokens_details": {"multimodal_tokens": 4}},
}
USAGE = {
    "prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "cost": 0.25, "completion_tokens_details": None,
    "prompt_tokens_details": {"cached_tokens": 1, "multimodal_tokens": 4, "created_cache_tokens": 0},
}  # fmt: skip
HEAD = {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "service_tier": None}


def whole(*, is_chat: bool) -> Fields:
    """As vLLM sends it, and with fields of others."""
    message: Fields = {"role": "assistant", "content": "Hi", "audio": None, "annotations": [], "tool_calls": []}
    message |= {name: OF_CHOICE[name] for name in ("refusal", "citations")}
    fields = {name: OF_CHOICE[name] for name in ("token_ids", "routed_experts")}
    said: Fields = {"message": message} if is_chat else {"text": "Hi", "refusal": "never", "citations": ["a", "b"]}
    choice = {"index": 0, "finish_reason": "stop", "stop_reason": 7, "logprobs": None, **said, **fields}
    return {**HEAD, "choices": [choice], **{**BESIDE, "usage": USAGE}}


def pieces(*, is_chat: bool) -> list[Fields]:
    """The same in events: some fields in the first, some in all, some in parts, some in the last."""

    def said(text: str, **more: Any) -> Fields:
        return {"delta": {"content": text, **more}} if is_chat else {"text": text, **more}

    first = {**said("", refusal="never"), "token_ids": None}
    second = {**said("H", citations=["a"]), "token_ids": [5]}
    third = {**said("i", citations=["a", "b"]), "token_ids": [5]}
    last = {**said(""), "token_ids": [6], "routed_experts": "AAEC", "finish_reason": "stop", "stop_reason": 7}
    early = {name: BESIDE[name] for name in ("prompt_token_ids", "prompt_logprobs")}
    events = [
        {**HEAD, "provider": "somebody", "choices": [{"index": 0, **each}]} for each in (first, second, third, last)
    ]
    events[0] |= early
    events[1]["metrics"] = {"queue_time_ms": 0}
    end = {"metrics": {"time_to_first_token_ms": 3.5}, "system_fingerprint": "vllm-0.32.0-tp1", "usage": USAGE}
    return [*events, {**HEAD, "choices": [], **end}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    async def handler(request: web.Request) -> web.StreamResponse:
        body, is_chat = await request.json(), "chat" in request.path
        if not body.get("stream"):
            return web.json_response(whole(is_chat=is_chat))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in pieces(is_chat=is_chat):
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    with running_server() as server:
        server.handler = handler
        yield server


async def alist(stream: Any) -> list[Any]:
    return [each async for each in stream]


async def alist_of(stream: Any) -> list[Any]:
    return [each async for each in await stream]


def of_chunks(chunks: list[GenerationChunk]) -> tuple[Any, Any, Any]:
    ended = [chunk for chunk in chunks if chunk.finish_reason]
    assert [chunk.additional_fields for chunk in chunks[:-1] if not chunk.finish_reason] == [None] * (len(chunks) - 2)
    return ended[0].additional_fields, chunks[-1].additional_fields, ended[0].stop_reason


def of_result(result: Any) -> tuple[Any, Any, Any]:
    return result.choices[0].additional_fields, result.additional_fields, result.choices[0].stop_reason


ENGINE: dict[str, Callable[[Engine], tuple[Any, Any, Any]]] = {
    "chat": lambda engine: of_result(engine.chat(HELLO)),
    "achat": lambda engine: of_result(asyncio.run(engine.achat(HELLO))),
    "generate": lambda engine: of_result(engine.generate("Hello")),
    "chat_batch": lambda engine: of_result(engine.chat_batch([HELLO] * 2)[1]),
    "stream_chat": lambda engine: of_chunks(list(engine.stream_chat(HELLO))),
    "astream_chat": lambda engine: of_chunks(asyncio.run(alist(engine.astream_chat(HELLO)))),
    "stream_generate": lambda engine: of_chunks(list(engine.stream_generate("Hello"))),
}


@pytest.mark.parametrize("way", ENGINE)
def test_the_engine_has_them(server: RemoteServer, way: str) -> None:
    assert ENGINE[way](Engine(base_url=server.url, model="served")) == (OF_CHOICE, BESIDE, 7)


def added(chunks: list[Any]) -> Any:
    return reduce(lambda left, right: left + right, chunks)


LANGCHAIN: dict[str, Callable[[Fields], Fields]] = {
    "invoke": lambda own: ChatVLLM(**own).invoke("Hello").response_metadata,
    "ainvoke": lambda own: asyncio.run(ChatVLLM(**own).ainvoke("Hello")).response_metadata,
    "batch": lambda own: ChatVLLM(**own).batch(["Hello"] * 2)[1].response_metadata,
    "abatch": lambda own: asyncio.run(ChatVLLM(**own).abatch(["Hello"] * 2))[1].response_metadata,
    "stream": lambda own: added(list(ChatVLLM(**own).stream("Hello"))).response_metadata,
    "astream": lambda own: added(asyncio.run(alist(ChatVLLM(**own).astream("Hello")))).response_metadata,
    "streaming": lambda own: ChatVLLM(**own, streaming=True).invoke("Hello").response_metadata,
    "text": lambda own: LangChainVLLM(**own).generate(["Hello"]).generations[0][0].generation_info or {},
    "text_streaming": lambda own: LangChainVLLM(**own, streaming=True).generate(["Hello"]).generations[0][0]
    .generation_info or {},
}  # fmt: skip


@pytest.mark.parametrize("way", LANGCHAIN)
def test_langchains_response_metadata_has_them(server: RemoteServer, way: str) -> None:
    metadata = LANGCHAIN[way]({"base_url": server.url, "model": "served"})
    assert metadata["additional_fields"] == {**BESIDE, **OF_CHOICE}
    assert (metadata["stop_reason"], metadata["finish_reason"], metadata["model_name"]) == (7, "stop", "served")


MESSAGES = [ChatMessage(role="user", content="Hello")]
LLAMA_INDEX: dict[str, Callable[[VLLM], Any]] = {
    "chat": lambda llm: llm.chat(MESSAGES),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)),
    "complete": lambda llm: llm.complete("Hello"),
    "formatted": lambda llm: llm.complete("Hello", formatted=True),
    "chat_batch": lambda llm: llm.chat_batch([MESSAGES] * 2)[1],
    "stream_chat": lambda llm: list(llm.stream_chat(MESSAGES))[-1],
    "astream_chat": lambda llm: asyncio.run(alist_of(llm.astream_chat(MESSAGES)))[-1],
    "stream_complete": lambda llm: list(llm.stream_complete("Hello"))[-1],
    "stream_formatted": lambda llm: list(llm.stream_complete("Hello", formatted=True))[-1],
}


@pytest.mark.parametrize("way", LLAMA_INDEX)
def test_llama_indexs_raw_has_them(server: RemoteServer, way: str) -> None:
    raw = LLAMA_INDEX[way](VLLM(base_url=server.url, model="served")).raw
    assert raw["additional_fields"] == BESIDE
    assert raw["choices"][0]["additional_fields"] == OF_CHOICE
    assert raw["choices"][0]["stop_reason"] == 7
    assert raw["usage"]["total_tokens"] == 5


# ---- what there is not, and what is added up


PLAIN: Fields = {**HEAD, "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": {}}


@pytest.mark.parametrize(
    "nothing",
    [
        {},
        {"metrics": None},
        {"provider": ""},
        {"citations": []},
        {"x": {}},
        {"usage": {"prompt_tokens_details": {"x": 0}}},
    ],
)
def test_what_says_nothing_is_left_out(nothing: Fields) -> None:
    result = parse_result(json.dumps({**PLAIN, **nothing}).encode())
    assert (result.additional_fields, result.choices[0].additional_fields) == (None, None)


@pytest.mark.parametrize("value", [0, False, 0.0, "x", [0], {"a": None}])
def test_what_is_not_nothing_is_kept(value: Any) -> None:
    result = parse_result(json.dumps({**PLAIN, "of_somebody": value}).encode())
    assert result.additional_fields == {"of_somebody": value}


def test_no_name_says_what_an_answer_is() -> None:
    """They may have the names of ours, and of Python's."""
    odd = {"text": "x", "usage_metadata": 1, "self": 2, "class": {"id": 3}, "": 4}
    assert parse_result(json.dumps({**PLAIN, **odd}).encode()).additional_fields == odd


def streamed(*events: Fields) -> list[GenerationChunk]:
    reader = ChunkReader()
    chunks = [chunk for event in events for chunk in reader.chunks(json.dumps(event).encode())]
    return [*chunks, *reader.end("the server", is_done=True, needs_done=True)]


def piece(index: int = 0, *, text: str = "x", reason: str | None = None, **more: Any) -> Fields:
    return {"index": index, "delta": {"content": text}, "finish_reason": reason, **more}


@pytest.mark.parametrize(
    ("values", "together"),
    [
        (["a", "a"], "a"),
        (["a", "b"], "b"),
        ([1, 2], 2),
        ([["a"], ["b"]], ["a", "b"]),  # parts
        ([["a"], ["a", "b"]], ["a", "b"]),  # all there is so far
        ([["a"], ["a"]], ["a"]),  # the same in every event
        ([{"id": 1}, {"usage": 2}], {"id": 1, "usage": 2}),
        ([{"a": [1]}, {"a": [2]}], {"a": [1, 2]}),
        ([None, "a", None], "a"),
        ([["a"], {"b": 1}], {"b": 1}),
    ],
)
def test_how_the_pieces_of_a_stream_are_added_up(values: list[Any], together: Any) -> None:
    events = [{**HEAD, "choices": [piece()], "of_somebody": value} for value in values]
    *_, last = streamed(*events, {**HEAD, "choices": [piece(reason="stop")]})
    assert last.additional_fields == {"of_somebody": together}
    events = [{**HEAD, "choices": [piece(of_somebody=value)]} for value in values]
    *_, last = streamed(*events, {**HEAD, "choices": [piece(reason="stop")]})
    assert last.additional_fields == {"of_somebody": together}


def test_equal_tokens_in_a_row_are_all_kept() -> None:
    events = [{**HEAD, "choices": [piece(token_ids=[5])]} for _ in range(3)]
    *_, last = streamed(*events, {**HEAD, "choices": [piece(token_ids=[5, 2], reason="stop")]})
    assert last.additional_fields == {"token_ids": [5, 5, 5, 5, 2]}


def test_several_answers_keep_their_own() -> None:
    events = [{**HEAD, "choices": [piece(index, token_ids=[index])]} for index in (0, 1, 1, 0)]
    ends = [{**HEAD, "choices": [piece(index, reason="stop")]} for index in (1, 0)]
    chunks = streamed(*events, *ends, {**HEAD, "choices": [], "usage": USAGE})
    own = {chunk.index: chunk.additional_fields for chunk in chunks if chunk.finish_reason}
    assert own == {0: {"token_ids": [0, 0]}, 1: {"token_ids": [1, 1]}}


def test_a_tool_call_keeps_what_its_provider_wants_back() -> None:
    signed = {"extra_content": {"google": {"thought_signature": "abc"}}}
    call = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    plain = {**call, "id": "call-2"}
    message = {"content": None, "tool_calls": [{**call, **signed}, plain]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    result = parse_result(json.dumps({**HEAD, "choices": [choice], "usage": {}}).encode())
    assert result.choices[0].additional_fields == {"tool_calls": [{"id": "call-1", **signed}]}
    deltas = [[{**call, "index": 0, **signed}], [{"index": 0, "function": {"arguments": " "}}], [{**plain, "index": 1}]]
    events = [{**HEAD, "choices": [{"index": 0, "delta": {"tool_calls": delta}}]} for delta in deltas]
    *_, last = streamed(*events, {**HEAD, "choices": [piece(text="", reason="tool_calls")]})
    assert last.additional_fields == {"tool_calls": [{"id": "call-1", "index": 0, **signed}]}


def test_an_end_that_is_said_twice_counts_once() -> None:
    """As some gateways do, with the usage."""
    end = {"finish_reason": "stop", "stop_reason": "x"}
    again = {**HEAD, "choices": [{"index": 0, "delta": {"content": "!"}, **end}], "usage": USAGE}
    chunks = streamed({**HEAD, "choices": [{**piece(), **end}]}, again)
    assert [chunk.finish_reason for chunk in chunks] == ["stop", None, None]
    metadata = added([to_chat_chunk(chunk) for chunk in chunks]).message.response_metadata
    assert (metadata["finish_reason"], metadata["stop_reason"], metadata["model_name"]) == ("stop", "x", "served")
    assert "".join(chunk.text for chunk in chunks) == "x!"


def test_what_comes_after_the_end_of_a_choice_is_on_the_last_chunk() -> None:
    late = {**HEAD, "choices": [{"index": 0, "delta": {}, "content_filter_results": {"hate": 0}}]}
    *_, last = streamed({**HEAD, "choices": [piece(reason="stop")]}, late)
    assert last.additional_fields == {"content_filter_results": {"hate": 0}}


def test_results_with_them_go_to_other_processes() -> None:
    result = parse_result(json.dumps(whole(is_chat=True)).encode())
    assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result


# ---- all of it, where that is asked for


def of_llama(response: Any) -> Any:
    return response.raw


RAW: dict[str, Callable[[Fields], tuple[Any, bool]]] = {
    "chat": lambda own: (Engine(**own).chat(HELLO, keep_raw=True).raw, False),
    "generate": lambda own: (Engine(**own).generate("Hello", keep_raw=True).raw, False),
    "stream_chat": lambda own: (
        [event for chunk in Engine(**own).stream_chat(HELLO, keep_raw=True) for event in chunk.raw or ()],
        True,
    ),
    "invoke": lambda own: (ChatVLLM(**own).invoke("Hello", keep_raw=True).response_metadata["raw"], False),
    "bind": lambda own: (ChatVLLM(**own).bind(keep_raw=True).invoke("Hello").response_metadata["raw"], False),
    "stream": lambda own: (added(list(ChatVLLM(**own).stream("Hello", keep_raw=True))).response_metadata["raw"], True),
    "streaming": lambda own: (
        ChatVLLM(**own, streaming=True).invoke("Hello", keep_raw=True).response_metadata["raw"],
        True,
    ),
    "llama": lambda own: (of_llama(VLLM(**own).chat(MESSAGES, keep_raw=True))["raw"], False),
    "llama_stream": lambda own: (of_llama(list(VLLM(**own).stream_chat(MESSAGES, keep_raw=True))[-1])["raw"], True),
}


@pytest.mark.parametrize("way", RAW)
def test_the_whole_answer_can_be_kept(server: RemoteServer, way: str) -> None:
    raw, is_in_events = RAW[way]({"base_url": server.url, "model": "served"})
    is_chat = way != "generate"
    assert raw == (pieces(is_chat=is_chat) if is_in_events else whole(is_chat=is_chat))
    assert all("keep_raw" not in body for _, body in server.requests)


def test_it_is_kept_only_where_that_is_asked_for(server: RemoteServer) -> None:
    own: Fields = {"base_url": server.url, "model": "served"}
    assert Engine(**own).chat(HELLO).raw is None
    assert {chunk.raw for chunk in Engine(**own).stream_chat(HELLO)} == {None}
    assert "raw" not in ChatVLLM(**own).invoke("Hello").response_metadata
    assert "raw" not in of_llama(VLLM(**own).chat(MESSAGES))
