"""Messages and tools out, answers and their pieces in. Pure."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_vllm_local._answers import (
    streamed_llm_result,
    to_chat_chunk,
    to_chat_result,
    to_llm_result,
    to_text_chunk,
)
from langchain_vllm_local._messages import to_openai_messages
from langchain_vllm_local._tools import to_openai_tool_choice, to_openai_tools
from shared_engine import (
    Choice,
    GenerationChunk,
    GenerationResult,
    InvalidInputError,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)

CALL = {"name": "add", "args": {"a": 2, "stadt": "Köln"}, "id": "c1", "type": "tool_call"}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "stadt": "Köln"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        (SystemMessage("Be brief."), {"role": "system", "content": "Be brief."}),
        (
            SystemMessage("Be brief.", additional_kwargs={"__openai_role__": "developer"}),
            {"role": "developer", "content": "Be brief."},
        ),
        (HumanMessage("Hi", name="ann"), {"role": "user", "content": "Hi", "name": "ann"}),
        (
            HumanMessage(["a", {"type": "text", "text": "b", "id": "x"}, IMAGE]),
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, IMAGE]},
        ),
        (ChatMessage("Hi", role="user"), {"role": "user", "content": "Hi"}),
        (AIMessage("Hello"), {"role": "assistant", "content": "Hello"}),
        (AIMessageChunk(content="Hello"), {"role": "assistant", "content": "Hello"}),
        (
            AIMessage("", tool_calls=[CALL]),
            {"role": "assistant", "content": None, "tool_calls": [SENT_CALL]},
        ),
        (
            AIMessage([{"type": "text", "text": "Let me add"}, {"type": "tool_use", "id": "c1"}], tool_calls=[CALL]),
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "Let me add"}],
                "tool_calls": [SENT_CALL],
            },
        ),
        (
            AIMessage("", invalid_tool_calls=[{"name": "add", "args": '{"a"', "id": "c2", "error": "no JSON"}]),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": '{"a"'}}],
            },
        ),
        (
            AIMessage("4", additional_kwargs={"reasoning_content": "2+2"}),
            {"role": "assistant", "content": "4", "reasoning": "2+2"},
        ),
        (
            AIMessage([{"type": "reasoning", "reasoning": "2+2"}, {"type": "text", "text": "4"}]),
            {"role": "assistant", "content": [{"type": "text", "text": "4"}], "reasoning": "2+2"},
        ),
        (
            ToolMessage("5", tool_call_id="c1", name="add", status="error"),
            {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"},
        ),
    ],
)
def test_message_goes_out(message: BaseMessage, sent: dict[str, Any]) -> None:
    before = message.model_copy(deep=True)
    assert to_openai_messages([message]) == [sent]
    assert message == before


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (FunctionMessage("x", name="f"), r"messages\[1\] is a FunctionMessage"),
        (HumanMessage(["a", {"type": "file", "base64": "AA=="}]), r"messages\[1\].content\[1\] .* 'file'"),
        (HumanMessage([{"type": "tool_use", "id": "c"}]), r"messages\[1\].content\[0\] .* 'tool_use'"),
        (AIMessage([{"type": "tool_use", "id": "c"}]), r"messages\[1\].content\[0\] .* 'tool_use'"),
        (HumanMessage([{"text": "no type"}]), r"messages\[1\].content\[0\] .* None"),
    ],
)
def test_what_can_not_be_sent_is_named_with_its_position(message: BaseMessage, error: str) -> None:
    with pytest.raises(InvalidInputError, match=error):
        to_openai_messages([HumanMessage("Hi"), message])


# ---- tools


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Add(BaseModel):
    """Add two numbers."""

    a: int
    b: int


class AddDict(TypedDict):
    """Add two numbers."""

    a: int
    b: int


@pytest.mark.parametrize("given", [add, tool(add), Add, AddDict])
def test_all_kinds_of_tools_go_out_in_one_form(given: Any) -> None:
    (sent,) = to_openai_tools([given])
    function = sent["function"]
    assert (sent["type"], function["name"].lower()[:3], function["description"]) == (
        "function",
        "add",
        "Add two numbers.",
    )
    assert {name: spec["type"] for name, spec in function["parameters"]["properties"].items()} == {
        "a": "integer",
        "b": "integer",
    }
    assert to_openai_tools([sent]) == [sent]


def test_strict_is_written_into_the_tool_and_stays() -> None:
    (sent,) = to_openai_tools([add], strict=True)
    assert sent["function"]["strict"] is True
    assert to_openai_tools([sent]) == [sent]


NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, None),
        (False, None),
        (True, "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        ("add", NAMED),
        (NAMED, NAMED),
    ],
)
def test_tool_choice_goes_out(given: Any, sent: Any) -> None:
    assert to_openai_tool_choice(given, to_openai_tools([add])) == sent


@pytest.mark.parametrize("given", ["ad", {"type": "function", "function": {"name": "ad"}}])
def test_tool_choice_that_names_no_tool_is_refused_with_the_nearest(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="is not the name of a tool; did you mean 'add'"):
        to_openai_tool_choice(given, to_openai_tools([add]))


def test_a_tool_may_have_the_name_of_a_choice() -> None:
    tools = [{"type": "function", "function": {"name": "any"}}]
    assert to_openai_tool_choice("any", tools) == {"type": "function", "function": {"name": "any"}}


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


@pytest.mark.parametrize("arguments", ["", "{}"])
def test_tool_call_without_arguments_is_valid(arguments: str) -> None:
    message = to_chat_result(result(Choice(text="", tool_calls=(ToolCall(name="now", arguments=arguments, id="c"),))))
    assert message.generations[0].message.tool_calls == [{"name": "now", "args": {}, "id": "c", "type": "tool_call"}]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "null", "no"])
def test_arguments_that_are_no_object_make_an_invalid_call(arguments: str) -> None:
    calls = (ToolCall(name="add", arguments='{"a": 1}', id="c1"), ToolCall(name="add", arguments=arguments, id="c2"))
    message = to_chat_result(result(Choice(text="", tool_calls=calls))).generations[0].message
    assert isinstance(message, AIMessage)
    assert message.tool_calls == [{"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}]
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
