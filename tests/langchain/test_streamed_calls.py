"""A streamed tool call that was cut off is not one that can be made."""

from __future__ import annotations

import json
from functools import reduce

import pytest
from langchain_core.messages import AIMessageChunk

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._answers import to_chat_chunk
from langchain_vllm_local._streamed_calls import StreamedCalls
from shared_engine.results import GenerationChunk, TokenUsage, ToolCallDelta
from tests.support.sources import Source

CUT = [
    "",
    "{",
    '{"',
    '{"a',
    '{"a"',
    '{"a":',
    '{"a": 3',
    '{"a": "x',
    '{"a": "x\\',
    '{"a": "x"',
    '{"a": [1, {"b": "x',
    '{"a": 3,',
]
WHOLE = ["{}", '{"a": 3}', '{"a": "x\\"}"}', '{"a": "two\nlines"}']


def streamed(arguments: str, finish_reason: str) -> AIMessageChunk:
    """A call of one tool, whose arguments come in pieces, and another that is whole."""
    calls = StreamedCalls()
    deltas = [
        ToolCallDelta(index=0, id="1", name="add"),
        *(ToolCallDelta(index=0, arguments=arguments[at : at + 3]) for at in range(0, len(arguments), 3)),
        ToolCallDelta(index=1, id="2", name="sub", arguments='{"b": 1}'),
    ]
    chunks = [GenerationChunk(tool_calls=(delta,)) for delta in deltas]
    chunks += [GenerationChunk(finish_reason=finish_reason), GenerationChunk(usage=TokenUsage())]
    added = reduce(lambda left, right: left + right, (to_chat_chunk(calls.checked(chunk)) for chunk in chunks)).message
    assert isinstance(added, AIMessageChunk)
    return added


@pytest.mark.parametrize("arguments", CUT)
def test_arguments_that_never_became_whole_are_invalid(arguments: str) -> None:
    message = streamed(arguments, "length")
    assert [call["name"] for call in message.tool_calls] == ["sub"]
    (invalid,) = message.invalid_tool_calls
    assert (invalid["name"], invalid["id"]) == ("add", "1")
    assert str(invalid["args"]).startswith(arguments)


@pytest.mark.parametrize("arguments", ['{"a": 1,, "b": 2}', '{"a": oops}', '{"a": 1', "[1]", "3", "<xml>"])
def test_malformed_arguments_are_invalid_and_an_agent_tells_the_model(arguments: str) -> None:
    message = streamed(arguments, "tool_calls")
    assert [(call["name"], call["args"], call["id"]) for call in message.tool_calls] == [
        ("sub", {"b": 1}, "2"),
        ("add__malformed_arguments", {}, "1"),
    ]
    (invalid,) = message.invalid_tool_calls
    assert (invalid["name"], invalid["id"]) == ("add", "1")


@pytest.mark.parametrize("arguments", [*CUT, "[1]", "[1", "3", "null", '"a"', "<xml>"])
@pytest.mark.parametrize("finish_reason", ["tool_calls", "length"])
def test_what_is_no_object_is_no_json_either_in_the_end(arguments: str, finish_reason: str) -> None:
    """Of other JSON the streams of version 3 would make a call, with which they fail."""
    (call,) = [chunk for chunk in streamed(arguments, finish_reason).tool_call_chunks if chunk["index"] == 0]
    if arguments or finish_reason == "length":
        with pytest.raises(json.JSONDecodeError):
            json.loads(call["args"] or "")


def test_null_is_no_arguments() -> None:
    made = [(call["name"], call["args"], call["id"]) for call in streamed("null", "tool_calls").tool_calls]
    assert made == [("sub", {"b": 1}, "2"), ("add", {}, "1")]


@pytest.mark.parametrize("arguments", WHOLE)
@pytest.mark.parametrize("finish_reason", ["tool_calls", "length"])
def test_whole_arguments_are_not_touched(arguments: str, finish_reason: str) -> None:
    message = streamed(arguments, finish_reason)
    assert [call["name"] for call in message.tool_calls] == ["add", "sub"]
    assert not message.invalid_tool_calls


def test_a_call_without_arguments_can_be_made() -> None:
    assert [call["args"] for call in streamed("", "tool_calls").tool_calls] == [{}, {"b": 1}]


CALLED = (ToolCallDelta(index=0, id="1", name="add", arguments='{"a": 1}'), ToolCallDelta(index=1, id="2", name="sub"))
BLOCKS = {
    "thought, text and calls": (
        [
            GenerationChunk(reasoning="Hm", text="So"),
            GenerationChunk(tool_calls=CALLED),
            GenerationChunk(tool_calls=(ToolCallDelta(index=1, arguments='{"b": 2}'),)),
        ],
        [
            {"type": "reasoning", "reasoning": "Hm", "index": 0},
            {"type": "text", "text": "So", "index": 1},
            {"type": "tool_call", "name": "add", "args": {"a": 1}, "id": "1"},
            {"type": "tool_call", "name": "sub", "args": {"b": 2}, "id": "2"},
        ],
    ),
    "a malformed call": (
        [
            GenerationChunk(tool_calls=CALLED),
            GenerationChunk(tool_calls=(ToolCallDelta(index=1, arguments="{oops"),)),
        ],
        [
            {"type": "tool_call", "name": "add", "args": {"a": 1}, "id": "1"},
            {"type": "tool_call", "name": "sub__malformed_arguments", "args": {}, "id": "2"},
        ],
    ),
    "arguments that are null": (
        [GenerationChunk(tool_calls=(ToolCallDelta(index=0, id="1", name="add", arguments="null"),))],
        [{"type": "tool_call", "name": "add", "args": {}, "id": "1"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOCKS)
async def test_standard_blocks_have_each_call_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, blocks = BLOCKS[kind]
    source = Source()
    source.gives([*chunks, GenerationChunk(finish_reason="tool_calls"), GenerationChunk(usage=TokenUsage())])
    source.is_the_engine(monkeypatch)
    llm = ChatVLLM(model="org/name", output_version="v1")
    for pieces in (list(llm.stream("Hi")), [piece async for piece in llm.astream("Hi")]):
        message = reduce(lambda left, right: left + right, pieces)
        assert message.content == message.content_blocks == blocks
        assert [call["id"] for call in message.tool_calls] == [call["id"] for call in blocks if "id" in call]
