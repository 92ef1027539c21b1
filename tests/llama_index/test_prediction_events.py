"""Structured output: events, spans and usage; and streams that are left."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from shared_engine import LengthFinishReasonError
from tests.llama_index.listeners import RecordSpans
from tests.llama_index.predictions import (
    ABORT_S,
    ANNA,
    JSON,
    MODES,
    PROMPT,
    QUESTION,
    STREAMS,
    WAYS,
    Person,
    every_way,
    in_mode,
    keeps_exceptions,
    says,
)
from tests.support.remote_server import RemoteServer


@pytest.fixture(autouse=True)
def anna_is_the_answer(server: RemoteServer) -> None:
    says(server, JSON)


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_events_and_spans_are_told_once_and_tokens_counted_once(
    remote: VLLM,
    counter: TokenCountingHandler,
    events: list[BaseEvent],
    spans: RecordSpans,
    way: str,
    mode: str,
) -> None:
    outputs = WAYS[way](in_mode(remote, mode))
    told = [event.class_name() for event in events if event.class_name() != "LLMChatInProgressEvent"]
    progress = ["LLMStructuredPredictInProgressEvent"] * (len(outputs) if way in STREAMS else 0)
    inner = ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert sorted(told) == sorted(["LLMStructuredPredictStartEvent", *inner, *progress, "LLMStructuredPredictEndEvent"])
    assert [told[0], told[-1]] == ["LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent"]
    assert events[0].output_cls is Person
    assert events[-1].output == ANNA
    (end,) = [event for event in events if event.class_name() == "LLMChatEndEvent"]
    assert end.response.raw["usage"]["total_tokens"] == 12
    assert [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts] == [(5, 7)]
    chat = "VLLM." + ("a" if way.startswith("a") else "") + ("stream_chat" if way in STREAMS else "chat")
    within = {"default": [], "function": ["VLLM._prepare_chat_with_tools"], "llm": ["SchemaOutputParser.parse"]}
    assert spans.names() == sorted([f"VLLM.{way}", chat, *within[mode]])


def test_tokens_of_an_answer_that_was_cut_off_are_counted(
    remote: VLLM, server: RemoteServer, counter: TokenCountingHandler
) -> None:
    says(server, "{", "length")
    with pytest.raises(LengthFinishReasonError):
        remote.structured_predict(Person, PROMPT, fact="")
    assert counter.total_llm_token_count == 12


LEFT: dict[str, Callable[[Any, Any], Any]] = {
    "stream_structured_predict": lambda llm, _: llm.stream_structured_predict(Person, PROMPT),
    "stream_chat": lambda _, sllm: sllm.stream_chat([ChatMessage(QUESTION)]),
    "stream_complete": lambda _, sllm: sllm.stream_complete(QUESTION),
    "astream_structured_predict": lambda llm, _: llm.astream_structured_predict(Person, PROMPT),
    "astream_chat": lambda _, sllm: sllm.astream_chat([ChatMessage(QUESTION)]),
    "astream_complete": lambda _, sllm: sllm.astream_complete(QUESTION),
}


@pytest.mark.usefixtures("events")  # a handler that keeps exceptions as well
@pytest.mark.parametrize("told", ["nobody", "wrapper", "settings"])
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("stream", LEFT)
async def test_leaving_a_stream_ends_its_request(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, stream: str, is_closed: bool, told: str
) -> None:
    if told == "settings":
        monkeypatch.setattr(Settings, "callback_manager", keeps_exceptions())
    llm = VLLM(base_url=server.url, max_retries=0)
    how = {"callback_manager": keeps_exceptions()} if told == "wrapper" else {}
    left = LEFT[stream](llm, llm.as_structured_llm(Person, **how))
    server.streams('{"name": "An', then="hang")
    if inspect.isgenerator(left):
        await asyncio.to_thread(next, left)
        if is_closed:
            await asyncio.to_thread(left.close)
    else:
        left = await left
        await anext(left)
        if is_closed:
            await left.aclose()
    if not is_closed:
        del left  # as a loop does that is left by break
    assert await asyncio.to_thread(server.aborted.wait, ABORT_S)
