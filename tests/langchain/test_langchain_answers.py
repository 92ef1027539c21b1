"""The engine's answers as LangChain has them: whole, streamed, of chats and of text."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
)

from langchain_vllm_local._answers import (
    streamed_llm_result,
    to_chat_chunk,
    to_chat_result,
    to_llm_result,
    to_text_chunk,
)
from shared_engine import (
    Choice,
    GenerationChunk,
    GenerationResult,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)

# ---- chat answers


def result(*choices: Choice, **usage: int) -> GenerationResult:
    counted = TokenUsage(**{"prompt_tokens": 7, "completion_tokens": 3, **usage})
    return GenerationResult(choices=choices, usage=counted, request_id="chatcmpl-1", model="served")


def test_whole_answer_comes_in() -> None:
    choice = Choice(text="4", finish_reason="stop", stop_reason="###", reasoning="2+2", logprobs={"content": []})
    (generation,) = to_chat_result(result(choice, cached_tokens=5, reasoning_tokens=2)).generations
    message = generation.message
    assert isinstance(message, AIMessage)
    assert message.content == "4"
    assert message.additional_kwargs == {"reasoning_content": "2+2"}
    assert message.response_metadata == {
        "model_provider": "vllm",
        "model_name": "served",
        "id": "chatcmpl-1",
        "finish_reason": "stop",
        "stop_reason": "###",
        "logprobs": {"content": []},
    }
    assert message.usage_metadata == {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_token_details": {"cache_read": 5},
        "output_token_details": {"reasoning": 2},
    }
    assert generation.generation_info == {"finish_reason": "stop", "stop_reason": "###", "logprobs": {"content": []}}
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]


def test_usage_of_several_choices_adds_up() -> None:
    generations = to_chat_result(result(Choice(text="a"), Choice(text="b", index=1))).generations
    messages = [generation.message for generation in generations]
    assert [message.content for message in messages] == ["a", "b"]
    assert [isinstance(message, AIMessage) and message.usage_metadata is not None for message in messages] == [
        True,
        False,
    ]


@pytest.mark.parametrize("arguments", ["", "{}", "null"])
def test_tool_call_without_arguments_is_valid(arguments: str) -> None:
    message = to_chat_result(result(Choice(text="", tool_calls=(ToolCall(name="now", arguments=arguments, id="c"),))))
    assert message.generations[0].message.tool_calls == [{"name": "now", "args": {}, "id": "c", "type": "tool_call"}]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "no"])
@pytest.mark.parametrize("finish_reason", ["tool_calls", "length", "repetition"])
def test_arguments_that_are_no_object_make_an_invalid_call(arguments: str, finish_reason: str) -> None:
    """And one that an agent tells the model of, unless it was cut off."""
    calls = (ToolCall(name="add", arguments='{"a": 1}', id="c1"), ToolCall(name="add", arguments=arguments, id="c2"))
    choice = Choice(text="", tool_calls=calls, finish_reason=finish_reason)
    message = to_chat_result(result(choice)).generations[0].message
    assert isinstance(message, AIMessage)
    made = [{"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}]
    if finish_reason == "tool_calls":
        made.append({"name": "add__malformed_arguments", "args": {}, "id": "c2", "type": "tool_call"})
    assert message.tool_calls == made
    (invalid,) = message.invalid_tool_calls
    assert (invalid["name"], invalid["args"], invalid["id"]) == ("add", arguments, "c2")
    assert invalid["error"]


def add_up(pieces: list[GenerationChunk]) -> AIMessageChunk:
    messages = [to_chat_chunk(piece).message for piece in pieces]
    whole = reduce(lambda left, right: left + right, messages)
    assert isinstance(whole, AIMessageChunk)
    return whole


def piece(**values: Any) -> GenerationChunk:
    return GenerationChunk(request_id="chatcmpl-1", model="served", **values)


LAST = piece(usage=TokenUsage(prompt_tokens=7, completion_tokens=3))


def test_pieces_add_up_to_what_the_whole_answer_would_be() -> None:
    entry = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}
    whole = add_up(
        [
            piece(reasoning="2+"),
            piece(reasoning="2"),
            piece(text="It is", logprobs={"content": [entry]}),
            piece(text=" 4", finish_reason="stop", logprobs={"content": [entry]}),
            LAST,
        ]
    )
    choice = Choice(text="It is 4", finish_reason="stop", reasoning="2+2")
    expected = to_chat_result(result(choice)).generations[0].message
    assert isinstance(expected, AIMessage)
    assert (whole.content, whole.additional_kwargs) == (expected.content, expected.additional_kwargs)
    assert whole.usage_metadata == expected.usage_metadata
    assert {**whole.response_metadata, "logprobs": None} == {**expected.response_metadata, "logprobs": None}
    assert whole.chunk_position == "last"


def test_only_the_last_piece_has_usage_and_says_so() -> None:
    chunks = [to_chat_chunk(each).message for each in (piece(text="a"), piece(finish_reason="stop"), LAST)]
    assert [isinstance(chunk, AIMessageChunk) and chunk.chunk_position for chunk in chunks] == [None, None, "last"]
    assert [isinstance(chunk, AIMessageChunk) and chunk.usage_metadata is None for chunk in chunks] == [
        True,
        True,
        False,
    ]


def test_pieces_of_tool_calls_add_up() -> None:
    deltas = [
        ToolCallDelta(index=0, id="c1", name="add"),
        ToolCallDelta(index=0, arguments='{"a": '),
        ToolCallDelta(index=0, arguments="1}"),
        ToolCallDelta(index=1, id="c2", name="now"),
        ToolCallDelta(index=2, id="c3", name="add", arguments="no"),
    ]
    whole = add_up([*(piece(tool_calls=(delta,)) for delta in deltas), piece(finish_reason="tool_calls"), LAST])
    assert whole.tool_calls == [
        {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"},
        {"name": "now", "args": {}, "id": "c2", "type": "tool_call"},
    ]
    assert [(call["name"], call["args"], call["id"]) for call in whole.invalid_tool_calls] == [("add", "no", "c3")]


def test_two_pieces_of_one_call_in_one_chunk_are_one() -> None:
    together = (ToolCallDelta(index=0, id="c1", name="add"), ToolCallDelta(index=0, arguments='{"'))
    whole = add_up([piece(tool_calls=together), piece(tool_calls=(ToolCallDelta(index=0, arguments='a": 1}'),)), LAST])
    assert whole.tool_calls == [{"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}]
    assert whole.invalid_tool_calls == []


# ---- text answers


def test_text_answers_come_in_with_usage_of_each_and_of_all() -> None:
    answers = to_llm_result(
        [result(Choice(text="a", finish_reason="stop")), result(Choice(text="b"), Choice(text="c"))]
    )
    assert [[generation.text for generation in each] for each in answers.generations] == [["a"], ["b", "c"]]
    info = answers.generations[0][0].generation_info
    assert info is not None
    assert (info["finish_reason"], info["usage_metadata"]["total_tokens"]) == ("stop", 10)
    assert answers.llm_output == {
        "token_usage": {"prompt_tokens": 14, "completion_tokens": 6, "total_tokens": 20},
        "model_name": "served",
    }


def test_pieces_of_text_add_up_to_what_the_whole_would_be() -> None:
    pieces = [piece(text="a", logprobs={"tokens": ["a"]}), piece(text="b", finish_reason="length"), LAST]
    streamed = streamed_llm_result([to_text_chunk(each) for each in pieces])
    whole = to_llm_result([result(Choice(text="ab", finish_reason="length", logprobs={"tokens": ["a"]}))])
    assert streamed.generations[0][0].text == "ab"
    assert streamed.generations[0][0].generation_info == whole.generations[0][0].generation_info
    assert streamed.llm_output == whole.llm_output
