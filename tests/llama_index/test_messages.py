"""LlamaIndex's messages in OpenAI's form."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import CacheControl

from llama_index_vllm_local import VLLM
from llama_index_vllm_local._messages import to_openai_messages
from shared_engine import InvalidInputError

ADD_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ChatMessage(role="user", content="Hi"), {"role": "user", "content": "Hi"}),
        (ChatMessage(role="system", content="Be brief."), {"role": "system", "content": "Be brief."}),
        (ChatMessage(role="developer", content="Be brief."), {"role": "developer", "content": "Be brief."}),
        (ChatMessage(role="chatbot", content="Hi"), {"role": "assistant", "content": "Hi"}),
        (ChatMessage(role="model", content="Hi"), {"role": "assistant", "content": "Hi"}),
        (ChatMessage(role="function", content="5"), {"role": "tool", "content": "5"}),
        (ChatMessage(role="assistant", blocks=[]), {"role": "assistant", "content": ""}),
        (
            ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
            {"role": "user", "content": "a\nb"},
        ),
        (
            ChatMessage(
                role="user",
                blocks=[TextBlock(text="a"), CachePoint(cache_control=CacheControl(type="ephemeral"))],
            ),
            {"role": "user", "content": "a"},
        ),
        (
            ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Hi")]),
            {"role": "assistant", "content": "Hi", "reasoning": "hm"},
        ),
        (
            ChatMessage(
                role="assistant",
                blocks=[
                    ThinkingBlock(content="first"),
                    TextBlock(text="So"),
                    ThinkingBlock(),
                    ThinkingBlock(content="then"),
                    ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 2, "b": 3}),
                ],
            ),
            {"role": "assistant", "content": "So", "reasoning": "first\nthen", "tool_calls": [ADD_CALL]},
        ),
        (
            ChatMessage(
                role="tool",
                blocks=[TextBlock(text="See:"), ImageBlock(url="http://x/cat.png")],
                additional_kwargs={"tool_call_id": "c1"},
            ),
            {
                "role": "tool",
                "content": [
                    {"type": "text", "text": "See:"},
                    {"type": "image_url", "image_url": {"url": "http://x/cat.png"}},
                ],
                "tool_call_id": "c1",
            },
        ),
        (
            ChatMessage(
                role="assistant",
                blocks=[
                    ImageBlock(url="http://x/cat.png"),
                    ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 2, "b": 3}),
                ],
            ),
            {
                "role": "assistant",
                "content": [{"type": "image_url", "image_url": {"url": "http://x/cat.png"}}],
                "tool_calls": [ADD_CALL],
            },
        ),
        (
            ChatMessage(role="function", content="5", additional_kwargs={"name": "add", "function_call": None}),
            {"role": "tool", "content": "5", "name": "add"},
        ),
        (
            ChatMessage(role="tool", content="5", additional_kwargs={"tool_call_id": "c1", "name": "add"}),
            {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"},
        ),
        (
            ChatMessage(
                role="assistant",
                blocks=[ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 2, "b": 3})],
            ),
            {"role": "assistant", "content": None, "tool_calls": [ADD_CALL]},
        ),
        (
            ChatMessage(
                role="assistant",
                blocks=[ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs='{"a": 2, "b": 3}')],
                additional_kwargs={"tool_calls": [ADD_CALL]},
            ),
            {"role": "assistant", "content": None, "tool_calls": [ADD_CALL]},
        ),
        (
            ChatMessage(role="assistant", blocks=[], additional_kwargs={"tool_calls": [ADD_CALL]}),
            {"role": "assistant", "content": None, "tool_calls": [ADD_CALL]},
        ),
    ],
)
def test_a_message_becomes_openais_form(message: ChatMessage, expected: dict[str, Any]) -> None:
    before = message.model_copy(deep=True)
    assert to_openai_messages([message]) == [expected]
    assert message == before


def test_a_block_that_cannot_be_sent_is_named_with_its_position() -> None:
    messages = [
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), ImageBlock()]),
    ]
    with pytest.raises(InvalidInputError, match=r"messages\[1\]\.blocks\[1\] has no image in it"):
        to_openai_messages(messages)


def test_a_message_of_another_kind_is_named_with_its_position() -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[0\] must be a ChatMessage, got dict"):
        to_openai_messages([{"role": "user", "content": "Hi"}])


# ---- calls that another LLM class has written


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "add", "arguments": {"a": 2, "b": 3}}},  # as Ollama's
        {"function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}},
        {"name": "add", "input": {"a": 2, "b": 3}, "type": "tool_use"},  # as Anthropic's
        {"name": "add", "args": {"a": 2, "b": 3}},  # as Gemini's
    ],
)
def test_a_call_without_an_id_is_sent_with_its_result(call: dict[str, Any]) -> None:
    messages = [
        ChatMessage(role="user", content="What is 2 + 3?"),
        ChatMessage(role="assistant", blocks=[], additional_kwargs={"tool_calls": [call]}),
        ChatMessage(role="tool", content="5"),
    ]
    sent = VLLM(model="Qwen/Qwen3-4B")._chat_request(messages, {}).messages
    assert sent is not None
    function = {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    called = {"id": "", "type": "function", "function": function}  # vLLM refuses one without
    assert sent[1] == {"role": "assistant", "content": None, "tool_calls": [called]}
    assert sent[2] == {"role": "tool", "content": "5"}


@pytest.mark.parametrize("call", ["add", {"name": "add"}, {"function": {"arguments": "{}"}}, {"args": {"a": 1}}])
def test_what_is_no_call_is_refused_with_its_position(call: Any) -> None:
    message = ChatMessage(role="assistant", blocks=[], additional_kwargs={"tool_calls": [call]})
    with pytest.raises(InvalidInputError, match=r"messages\[0\]\.additional_kwargs\['tool_calls'\]\[0\] is not a call"):
        to_openai_messages([message])
