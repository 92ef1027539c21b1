"""LangChain's messages as the engine takes them."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_vllm_local._messages import to_openai_messages
from shared_engine import (
    InvalidInputError,
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
                "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
            },
        ),
        (  # a call that could not be made, and what stood for it in an agent
            AIMessage(
                "",
                tool_calls=[{"name": "add__malformed_arguments", "args": {}, "id": "c2"}],
                invalid_tool_calls=[{"name": "add", "args": '{"a"', "id": "c2", "error": "no JSON"}],
            ),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
            },
        ),
        (  # the same, where another program has left the stand-in only
            AIMessage("", tool_calls=[{"name": "add__malformed_arguments", "args": {}, "id": "c2"}]),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
            },
        ),
        (
            ToolMessage("no such tool", tool_call_id="c2", name="add__malformed_arguments"),
            {"role": "tool", "content": "no such tool", "tool_call_id": "c2", "name": "add"},
        ),
        (
            AIMessage("", tool_calls=[{"name": "add", "args": {"day": date(2026, 1, 2)}, "id": "c2"}]),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c2", "type": "function", "function": {"name": "add", "arguments": '{"day": "2026-01-02"}'}}
                ],
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
            AIMessage(
                [
                    {"type": "text", "text": "two"},
                    {"type": "reasoning", "reasoning": "2+2"},
                    {"type": "text", "text": " and two"},
                    CALL,
                    " is four",
                    IMAGE,
                    {"type": "text", "text": "!"},
                ],
                tool_calls=[CALL],
            ),
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "two and two is four"}, IMAGE, {"type": "text", "text": "!"}],
                "reasoning": "2+2",
                "tool_calls": [SENT_CALL],
            },
        ),
        (FunctionMessage("5", name="add"), {"role": "tool", "content": "5", "name": "add"}),
        (
            AIMessage("", additional_kwargs={"function_call": {"name": "add", "arguments": '{"a": 2}'}}),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
            },
        ),
        (
            AIMessage([{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 2, "stadt": "Köln"}}]),
            {"role": "assistant", "content": None, "tool_calls": [SENT_CALL]},
        ),
        (
            AIMessage([{"type": "tool_use", "id": "c1", "input": {"a": 2}}]),
            {"role": "assistant", "content": [{"type": "text", "text": '[tool_use: {"input": {"a": 2}}]'}]},
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
        (RemoveMessage(id="1"), r"messages\[1\] is a RemoveMessage"),
        (HumanMessage(["a", {"type": "file", "base64": "AA=="}]), r"messages\[1\].content\[1\] .* 'file'"),
        (HumanMessage([{"type": "tool_use", "id": "c"}]), r"messages\[1\].content\[0\] .* 'tool_use'"),
        (HumanMessage([{"text": "no type"}]), r"messages\[1\].content\[0\] .* None"),
    ],
)
def test_what_can_not_be_sent_is_named_with_its_position(message: BaseMessage, error: str) -> None:
    with pytest.raises(InvalidInputError, match=error):
        to_openai_messages([HumanMessage("Hi"), message])


# ---- Anthropic's form


def result(content: Any, call_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **more}


def test_results_of_tools_in_what_the_user_says_are_messages_before_it() -> None:
    said = {"type": "text", "text": "And now?"}
    messages: list[BaseMessage] = [HumanMessage([result("5"), said, result([IMAGE, said], "c2")], name="ann")]
    before = [message.model_copy(deep=True) for message in messages]
    assert to_openai_messages(messages) == [
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "tool", "content": [IMAGE, said], "tool_call_id": "c2"},
        {"role": "user", "content": [said], "name": "ann"},
    ]
    assert messages == before


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result("5"), "5"),
        (result("5", is_error=True), "5"),
        (result("", is_error=True), "Error"),
        (result([]), ""),
        ({"type": "tool_result", "tool_use_id": "c1"}, ""),
        # of a tool, so text takes its place
        (result([{"type": "document", "title": "a.pdf"}]), [{"type": "text", "text": "[document a.pdf is not shown]"}]),
        (result([{"type": "image", "path": "/a.png"}]), [{"type": "text", "text": "[image at /a.png is not shown]"}]),
    ],
)
def test_a_result_alone_leaves_no_message_of_the_users(block: dict[str, Any], content: Any) -> None:
    assert to_openai_messages([HumanMessage([block])]) == [{"role": "tool", "content": content, "tool_call_id": "c1"}]


def test_what_stands_beside_a_result_and_can_not_be_sent_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[1\].content\[1\] .* 'file'"):
        to_openai_messages([HumanMessage("Hi"), HumanMessage([result("5"), {"type": "file", "base64": "AA=="}])])


# ---- answers of other providers


TEXT = {"type": "text", "text": "b"}
ARGUMENTS = '{"a": 2, "stadt": "Köln"}'
OF_RESPONSES = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": ARGUMENTS}
OF_GOOGLE = {"type": "function_call", "id": "c1", "name": "add", "args": CALL["args"]}
OF_BEDROCK = {"toolUse": {"toolUseId": "c1", "name": "add", "input": CALL["args"]}}


@pytest.mark.parametrize(
    "block",
    [
        CALL,
        OF_RESPONSES,
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c1", "name": "add", "input": "2 in Köln"},
        OF_GOOGLE,
        {"type": "function_call_signature", "signature": "s", "index": 0},
        {"type": "tool_use", "id": "c1", "name": "add", "input": CALL["args"]},
        {"type": "input_json_delta", "partial_json": ARGUMENTS, "index": 1},
        OF_BEDROCK,
        {"type": "non_standard", "value": {"type": "input_json_delta", "partial_json": ARGUMENTS}},
    ],
)
def test_a_call_that_stands_in_a_block_too_is_sent_once(block: dict[str, Any]) -> None:
    (sent,) = to_openai_messages([AIMessage([block, TEXT], tool_calls=[CALL])])
    assert sent == {"role": "assistant", "content": [TEXT], "tool_calls": [SENT_CALL]}


@pytest.mark.parametrize("block", [CALL, OF_RESPONSES, OF_GOOGLE, OF_BEDROCK])
def test_a_call_in_a_block_alone_is_one(block: dict[str, Any]) -> None:
    (sent,) = to_openai_messages([AIMessage([block])])
    assert sent == {"role": "assistant", "content": None, "tool_calls": [SENT_CALL]}


def test_what_a_providers_own_tools_did_is_told_in_words() -> None:
    (sent,) = to_openai_messages([AIMessage([{"type": "web_search_call", "status": "completed"}], tool_calls=[CALL])])
    assert sent["content"] == [{"type": "text", "text": '[web_search_call: {"status": "completed"}]'}]


@pytest.mark.parametrize(
    ("block", "reasoning"),
    [
        ({"type": "reasoning_content", "reasoning_content": {"text": "2+2", "signature": "s"}}, "2+2"),
        ({"type": "reasoning_content", "reasoning_content": {"redacted_content": "QUJD"}}, None),
        ({"reasoningContent": {"reasoningText": {"text": "2+2", "signature": "s"}}}, "2+2"),
        ({"type": "thinking", "thinking": "2+2", "signature": "s"}, "2+2"),
        ({"type": "thinking", "thinking": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2"}]}, "2+2"),
        ({"type": "redacted_thinking", "data": "QUJD"}, None),
        ({"type": "reasoning", "id": "rs_1", "summary": []}, None),
        (
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": text} for text in ("2+2", "So 4")]},
            "2+2\n\nSo 4",
        ),
        ({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "2+2"}]}, "2+2"),
        ({"type": "non_standard", "value": {"type": "redacted_thinking", "data": "QUJD"}}, None),
    ],
)
def test_a_thought_is_sent_as_one(block: dict[str, Any], reasoning: str | None) -> None:
    (sent,) = to_openai_messages([AIMessage([block, TEXT])])
    thought = {"reasoning": reasoning} if reasoning else {}
    assert sent == {"role": "assistant", "content": [TEXT], **thought}
