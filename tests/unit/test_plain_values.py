"""What is sent though JSON has no word for its class; and strings that are no Unicode, sent and received."""

from __future__ import annotations

import json
import math
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from llama_index_vllm_local import VLLM, VLLMEmbedding
from shared_engine import Engine, InvalidInputError
from shared_engine.request.bodies import encode
from shared_engine.request.dialects import without_half_pairs
from tests.support.remote_server import RemoteServer, chat_answer, running_server


class Text(str):
    """As LangChain's ``message.text`` is."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Whole(int):
    pass


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (Text("a"), "a"),
        ({Text("name"): [Text("a")]}, {"name": ["a"]}),
        (Whole(3), 3),
        (np.str_("a"), "a"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (deque([1]), [1]),
    ],
)
def test_a_value_of_a_class_of_its_own_is_sent_as_what_it_is(value: Any, sent: Any) -> None:
    assert json.loads(encode({"x": value})) == {"x": sent}


@pytest.mark.parametrize("value", [np.float32("nan"), np.float64("inf"), np.array([1.0, math.nan])])
def test_no_number_of_numpys_becomes_null(server: RemoteServer, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^x(\[1\])? is not a finite number"):
        Engine(base_url=server.url, model="m").chat([{"role": "user", "content": "Hi"}], extra_body={"x": value})


def test_what_has_no_json_form_is_named(server: RemoteServer) -> None:
    with pytest.raises(InvalidInputError, match=r"x: .*Encoding objects of type object is unsupported"):
        Engine(base_url=server.url, model="m").chat([{"role": "user", "content": "Hi"}], extra_body={"x": object()})


def test_the_text_of_a_message_goes_wherever_a_text_goes(server: RemoteServer) -> None:
    llm = ChatVLLM(base_url=server.url, model="served")
    text = llm.invoke("Hi").text
    assert type(text) is not str
    engine = Engine(base_url=server.url, model="served")
    calls: list[Callable[[], object]] = [
        lambda: engine.chat([{"role": "user", "content": text}]),
        lambda: engine.generate(text),
        lambda: llm.invoke([HumanMessage([{"type": "text", "text": text}])]),
        lambda: (llm | StrOutputParser() | llm).invoke("Hi"),
        lambda: VLLM(base_url=server.url, model="served").complete(text),
    ]
    for call in calls:
        server.requests.clear()
        call()
        assert "Hi" in json.dumps(server.requests[-1][1])


def test_the_text_of_a_message_is_embedded(server: RemoteServer) -> None:
    from aiohttp import web

    text = ChatVLLM(base_url=server.url, model="served").invoke("Hi").text
    asked: list[Any] = []

    async def vectors(request: web.Request) -> web.StreamResponse:
        asked.append((await request.json())["input"])
        return web.json_response({"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1}})

    server.handler = vectors
    VLLMEmbeddings(base_url=server.url, model="served").embed_query(text)
    VLLMEmbedding(base_url=server.url, model="served").get_text_embedding(text)
    assert asked == [["Hi"], ["Hi"]]


# ---- halves of surrogate pairs

HALF = "a \ud83d b"
SHOWN = "a \\ud83d b"
CALL = {"name": "f", "args": {"x": HALF}, "id": "1"}


def test_half_a_pair_that_the_model_wrote_ends_no_conversation(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served")
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": json.dumps({"x": HALF}, ensure_ascii=False)},
    }
    engine.chat(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": HALF, "reasoning": HALF, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": HALF},
        ]
    )
    _, written, result = server.requests[0][1]["messages"]
    assert (written["content"], written["reasoning"], result["content"]) == (SHOWN,) * 3
    assert json.loads(written["tool_calls"][0]["function"]["arguments"]) == {"x": HALF}, "as the model wrote it"
    with pytest.raises(InvalidInputError, match=r"messages\[0\]: .*surrogates not allowed"):
        engine.chat([{"role": "user", "content": HALF}])


def test_both_frameworks_send_it(server: RemoteServer) -> None:
    ChatVLLM(base_url=server.url, model="served").invoke([HumanMessage("Hi"), AIMessage(HALF, tool_calls=[CALL])])
    VLLM(base_url=server.url, model="served").chat(
        [ChatMessage("Hi"), ChatMessage(HALF, role="assistant"), ChatMessage("And?")]
    )
    assert [body["messages"][1]["content"] for _, body in server.requests] == [SHOWN] * 2


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\uD83D\uDE00 \ud83d"', "\U0001f600 \ufffd"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\\ud83d"', "\\ud83d"),
        (r'"\\\ud83d\n"', "\\\ufffd\n"),
        (r'"\u00e4\ud83d"', "ä\ufffd"),
    ],
)
def test_half_a_pair_in_an_answer_is_a_replacement_character(sent: str, read: str) -> None:
    assert json.loads(without_half_pairs(sent.encode())) == read


def test_an_answer_with_half_a_pair_is_read(server: RemoteServer) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("stream"):
            return web.json_response(chat_answer("a \ud83d"))
        response = web.StreamResponse()
        await response.prepare(request)
        for delta, reason in ({"content": "a \ud83d"}, None), ({}, "stop"):
            event = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    server.handler = answer
    engine = Engine(base_url=server.url, model="served")
    messages = [{"role": "user", "content": "Hi"}]
    assert engine.chat(messages, keep_raw=True).text == "a \ufffd"
    assert "".join(chunk.text for chunk in engine.stream_chat(messages)) == "a \ufffd"
