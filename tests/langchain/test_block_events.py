"""The events of LangChain's content-block protocol, made of the engine's chunks; against those of core's bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import reduce
from itertools import chain
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.language_models._compat_bridge import chunks_to_events
from langchain_core.language_models.chat_model_stream import ChatModelStream
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_tests.utils.stream_lifecycle import assert_valid_event_stream

from langchain_vllm_local import ChatVLLM, chat_models
from langchain_vllm_local._answers import to_chat_chunk
from langchain_vllm_local._block_events import AnswerEvents
from langchain_vllm_local._streamed_calls import StreamedCalls
from shared_engine.results import GenerationChunk, TokenUsage, ToolCallDelta
from tests.langchain.token_callbacks import Tokens
from tests.support.sources import Source

USAGE = TokenUsage(prompt_tokens=7, completion_tokens=5, cached_tokens=3, reasoning_tokens=2)
OPENING = GenerationChunk(model="m", request_id="r")


def said(*pieces: str) -> list[GenerationChunk]:
    return [GenerationChunk(text=piece, model="m", request_id="r") for piece in pieces]


def thought(*pieces: str) -> list[GenerationChunk]:
    return [GenerationChunk(reasoning=piece, model="m", request_id="r") for piece in pieces]


def called(index: int, *pieces: str, name: str = "add") -> list[GenerationChunk]:
    deltas = [
        ToolCallDelta(index=index, id=f"call_{index}", name=name),
        *(ToolCallDelta(index=index, arguments=piece) for piece in pieces),
    ]
    return [GenerationChunk(tool_calls=(delta,), model="m", request_id="r") for delta in deltas]


def ended(reason: str = "stop", **fields: Any) -> list[GenerationChunk]:
    return [
        GenerationChunk(finish_reason=reason, model="m", request_id="r", **fields),
        GenerationChunk(usage=USAGE, model="m", request_id="r"),
    ]


def events_of(chunks: Iterable[GenerationChunk]) -> list[dict[str, Any]]:
    events = AnswerEvents("lc_run-1")
    made = [event for chunk in chunks for event in events.of(chunk)]
    return [dict(event) for event in (*made, *events.end())]


def message_of(events: Iterable[Any]) -> AIMessage:
    stream = ChatModelStream(message_id="lc_run-1")
    for event in events:
        stream.dispatch(event)
    assert stream.output_message is not None
    return stream.output_message


def bridged(chunks: Iterable[GenerationChunk]) -> AIMessage:
    calls = StreamedCalls()
    return message_of(
        chunks_to_events((to_chat_chunk(calls.checked(chunk)) for chunk in chunks), message_id="lc_run-1")
    )


TWO_AT_ONCE = GenerationChunk(
    tool_calls=(
        ToolCallDelta(index=0, id="call_0", name="add", arguments='{"a"'),
        ToolCallDelta(index=0, arguments=": 1"),
        ToolCallDelta(index=1, id="call_1", name="sub", arguments="{}"),
    ),
    model="m",
    request_id="r",
)
ANSWERS = {
    "text": [OPENING, *said("Hel", "lo"), *ended()],
    "nothing": [OPENING, *ended()],
    "thought and text": [OPENING, *thought("I ", "think"), *said("so"), *ended()],
    "a piece of both": [GenerationChunk(reasoning="I", text="so", model="m", request_id="r"), *ended()],
    "a call": [OPENING, *called(0, '{"a":', " 1}"), *ended("tool_calls")],
    "a call without arguments": [OPENING, *called(0), *ended("tool_calls")],
    "all kinds": [*thought("I"), *said("so"), *called(0, "{}"), *called(1, '{"a": [1]}'), *ended("tool_calls")],
    "calls by turns": [
        *chain(*zip(called(0, '{"a"', ": 1}"), called(1, '{"b": ', "2}", name="sub"), strict=True)),
        *ended("tool_calls"),
    ],
    "several pieces at once": [TWO_AT_ONCE, *called(0, "}")[1:], *ended("tool_calls")],
    "cut off": [*said("So"), *called(0, '{"a": 1'), *ended("length")],
    "cut off before the arguments": [*called(0), *ended("length")],
    "malformed": [*called(0, '{"a": oops}'), *ended("tool_calls")],
    "facts at the end": [
        *said("So"),
        *ended("length", stop_reason="x", max_tokens_lowered_to=3, additional_fields={"a": {"b": None}, "c": None}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_message_is_that_of_cores_bridge(name: str) -> None:
    events = events_of(ANSWERS[name])
    assert_valid_event_stream(events)
    message, expected = message_of(events), bridged(ANSWERS[name])
    assert message.id == expected.id == "lc_run-1"
    assert message.text == expected.text
    assert message.tool_calls == expected.tool_calls
    assert message.usage_metadata == expected.usage_metadata
    assert message.response_metadata == expected.response_metadata
    assert message.additional_kwargs == expected.additional_kwargs
    kinds = [[block["type"] for block in each.content_blocks] for each in (message, expected)]
    assert kinds[0] == kinds[1]
    invalid = [[(call["id"], call["name"]) for call in each.invalid_tool_calls] for each in (message, expected)]
    assert invalid[0] == invalid[1]


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
async def test_core_takes_them_for_version_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with them what its bridge loses of the same chunks."""
    chunks = [GenerationChunk(text=text, model="m", logprobs={"content": [{"token": text}]}) for text in "abc"]
    source = Source()
    source.gives([*chunks, *ended()])
    source.is_the_engine(monkeypatch)
    llm = ChatVLLM(model="org/name")
    stream = llm.stream_events("Hi", version="v3")
    pieces = list(stream.text)
    async_stream = await llm.astream_events("Hi", version="v3")
    assert pieces == [text async for text in async_stream.text] == ["a", "b", "c"]
    for message in (stream.output, await async_stream.output):
        assert [each["token"] for each in message.response_metadata["logprobs"]["content"]] == ["a", "b", "c"]
        assert message.id is not None
        assert message.id.startswith("lc_run-")
    assert len(bridged([*chunks, *ended()]).response_metadata["logprobs"]["content"]) == 1


def test_the_first_event_names_provider_and_model() -> None:
    start = events_of(ANSWERS["text"])[0]
    assert (start["event"], start["id"]) == ("message-start", "lc_run-1")
    assert start["metadata"] == {"provider": "vllm", "model": "m"}


def test_no_chunks_are_no_events() -> None:
    assert events_of([]) == []


def test_a_thought_is_finished_before_the_answer_begins() -> None:
    order = [(event["event"], event.get("index")) for event in events_of(ANSWERS["thought and text"])]
    assert order == [
        ("message-start", None),
        ("content-block-start", 0),
        ("content-block-delta", 0),
        ("content-block-delta", 0),
        ("content-block-finish", 0),
        ("content-block-start", 1),
        ("content-block-delta", 1),
        ("content-block-finish", 1),
        ("message-finish", None),
    ]


def test_thoughts_between_calls_and_texts_are_blocks_of_their_own() -> None:
    answer = [*thought("a"), *called(0, "{}"), *thought("b"), *said("c"), *called(1, "{}"), *said("d"), *ended()]
    message = message_of(events_of(answer))
    assert [block["type"] for block in message.content_blocks] == [
        "reasoning", "tool_call", "reasoning", "text", "tool_call", "text",
    ]  # fmt: skip
    assert message.additional_kwargs == {"reasoning_content": "ab"}
    assert message.text == "cd"


def test_all_log_probabilities_are_in_the_message() -> None:
    chunks = [
        GenerationChunk(text=text, model="m", logprobs={"content": [{"token": text, "logprob": -1.0}], "refusal": None})
        for text in "abc"
    ]
    message = message_of(events_of([*chunks, *ended()]))
    assert [each["token"] for each in message.response_metadata["logprobs"]["content"]] == ["a", "b", "c"]
    assert chunks[0].logprobs == {"content": [{"token": "a", "logprob": -1.0}], "refusal": None}  # not changed


def test_all_events_of_the_server_are_kept_where_that_was_asked_for() -> None:
    message = message_of(events_of([GenerationChunk(text=text, model="m", raw=[text]) for text in "ab"] + ended()))
    assert message.response_metadata["raw"] == ["a", "b"]


def test_arguments_of_a_call_are_the_models_own_to_the_last_piece() -> None:
    """Those of ``_stream`` get an end by which core makes them invalid."""
    events = events_of(ANSWERS["cut off"])
    pieces = [event["delta"]["args"] for event in events if event.get("delta", {}).get("type") == "tool-call-delta"]
    assert pieces == ['{"a": 1']
    (invalid,) = message_of(events).invalid_tool_calls
    assert (invalid["args"], invalid["name"]) == ('{"a": 1', "add")


def test_an_agent_is_told_of_malformed_arguments() -> None:
    message = message_of(events_of(ANSWERS["malformed"]))
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("add__malformed_arguments", {})]
    (invalid,) = message.invalid_tool_calls
    assert invalid["error"] is not None
    assert "not valid JSON" in invalid["error"]


# ---- who else hears of the answer


class Runs(BaseTracer):
    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.ended.append(run)


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
async def test_callbacks_and_tracers_hear_of_each_chunk_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangSmith knows by it when the first token came."""
    answer = ANSWERS["cut off"]
    source = Source()
    source.gives(answer)
    source.is_the_engine(monkeypatch)
    llm = ChatVLLM(model="org/name")
    tokens, runs = Tokens(), Runs()
    message = llm.stream_events("Hi", version="v3", config={"callbacks": [tokens, runs]}).output
    await (await llm.astream_events("Hi", version="v3", config={"callbacks": [tokens, runs]})).output
    assert len(tokens.chunks) == 2 * len(answer)
    assert "".join(chunk.text for chunk in tokens.chunks) == message.text * 2
    whole = reduce(lambda left, right: left + right, (chunk.message for chunk in tokens.chunks[: len(answer)]))
    assert len(whole.invalid_tool_calls) == 1
    for run in runs.ended:
        assert [event["name"] for event in run.events] == ["start", *["new_token"] * len(answer), "end"]


class Streams(BaseCallbackHandler, _V2StreamingCallbackHandler):
    """As LangGraph's: its method does nothing."""

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError


def test_no_chunk_is_made_that_nobody_hears_of(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    source.gives(ANSWERS["text"])
    source.is_the_engine(monkeypatch)
    monkeypatch.setattr(chat_models, "to_chat_chunk", lambda _: pytest.fail("a chunk"))
    llm = ChatVLLM(model="org/name")
    assert llm.invoke("Hi", {"callbacks": [Streams(), UsageMetadataCallbackHandler()]}).text == "Hello"


# ---- classes made of ours


class Loud(ChatVLLM):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in super()._stream(*args, **kwargs):
            yield ChatGenerationChunk(message=chunk.message.model_copy(update={"content": chunk.text.upper()}))

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in super()._astream(*args, **kwargs):
            yield ChatGenerationChunk(message=chunk.message.model_copy(update={"content": chunk.text.upper()}))


class Louder(Loud):
    pass


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
@pytest.mark.parametrize("made", [Loud, Louder])
async def test_a_class_that_changes_the_chunks_changes_the_events(
    made: type[ChatVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source()
    source.gives(ANSWERS["text"])
    source.is_the_engine(monkeypatch)
    llm = made(model="org/name")
    assert llm.stream_events("Hi", version="v3").output.text == "HELLO"
    assert (await (await llm.astream_events("Hi", version="v3")).output).text == "HELLO"


class Own(Loud):
    def _stream_chat_model_events(self, *args: Any, **kwargs: Any) -> Any:
        return ChatVLLM._stream_chat_model_events(self, *args, **kwargs)


@pytest.mark.filterwarnings("ignore:The method .* is in beta")
def test_a_class_may_have_events_of_its_own_beside_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    source.gives(ANSWERS["text"])
    source.is_the_engine(monkeypatch)
    assert Own(model="org/name").stream_events("Hi", version="v3").output.text == "Hello"
