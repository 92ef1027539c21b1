"""A thought before the answer: in the message, in v1 blocks, in a stream, sent back, and switched on and off."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage

from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import InvalidInputError
from tests.support.engines import ended_engines
from tests.support.paths import TINY_CHAT

QUESTION = "What is 2 + 3?"


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=64)


def streamed(llm: ChatVLLM, *messages: Any, **call: Any) -> AIMessageChunk:
    return reduce(lambda left, right: left + right, llm.stream(list(messages), **call))


@pytest.mark.parametrize(
    ("switch", "thinks"),
    [
        ({}, False),
        ({"enable_thinking": True}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, True),
    ],
)
def test_thinking_is_switched_by_a_call_or_the_constructor(
    llm: ChatVLLM, tiny_chat: dict[str, Any], switch: dict[str, Any], thinks: bool
) -> None:
    for message in (llm.invoke(QUESTION, **switch), ChatVLLM(**tiny_chat, **switch, max_tokens=64).invoke(QUESTION)):
        assert bool(message.additional_kwargs.get("reasoning_content")) is thinks
        assert message.text and "think>" not in message.text


def test_a_call_wins_over_the_constructor(tiny_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**tiny_chat, enable_thinking=True, max_tokens=64)
    assert not llm.invoke(QUESTION, enable_thinking=False).additional_kwargs


def test_the_thought_is_a_block_of_its_own_whole_and_streamed(llm: ChatVLLM) -> None:
    whole = llm.invoke(QUESTION, enable_thinking=True)
    pieces = streamed(llm, QUESTION, enable_thinking=True)
    for message in (whole, pieces):
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
        assert message.content_blocks[0]["reasoning"] == message.additional_kwargs["reasoning_content"]
        assert isinstance(message.content, str)
    assert pieces.additional_kwargs == whole.additional_kwargs
    assert pieces.text == whole.text


def test_output_version_v1_has_it_in_the_content(tiny_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=64, enable_thinking=True, output_version="v1")
    for message in (llm.invoke(QUESTION), streamed(llm, QUESTION)):
        assert isinstance(message.content, list)
        assert [block["type"] for block in message.content if isinstance(block, dict)] == ["reasoning", "text"]


def test_a_count_that_the_server_gets_wrong_is_left_out(llm: ChatVLLM) -> None:
    # vLLM says 0 for a thought that the chat template opened, as tiny_chat's and DeepSeek R1's do.
    for message in (llm.invoke(QUESTION, enable_thinking=True), streamed(llm, QUESTION, enable_thinking=True)):
        assert message.usage_metadata is not None
        assert "output_token_details" not in message.usage_metadata
    quick = llm.invoke(QUESTION).usage_metadata
    assert quick is not None and quick["output_token_details"] == {"reasoning": 0}


def test_the_thought_goes_back_to_the_model_in_a_tool_loop(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    template = tmp_path / "shows_thoughts.jinja"
    # As Qwen3's and GLM's do. What it shows costs tokens: seen by the model, and not merely accepted by vLLM.
    shown = "{% for m in messages %}{% if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}{% endfor %}"
    template.write_text(shown + (TINY_CHAT / "chat_template.jinja").read_text())
    args = {**tiny_chat["engine_args"], "chat_template": str(template)}
    llm = ChatVLLM(**{**tiny_chat, "engine_args": args}, temperature=0.0, max_tokens=64)
    with ended_engines() as engines:
        engines.append(llm.engine)
        thought = llm.invoke(QUESTION, enable_thinking=True)
        assert thought.additional_kwargs["reasoning_content"]
        call = {"name": "add", "args": {"a": 2, "b": 3}, "id": "1"}
        with_thought = AIMessage("", additional_kwargs=thought.additional_kwargs, tool_calls=[call])
        in_blocks = AIMessage([thought.content_blocks[0], {"type": "text", "text": ""}], tool_calls=[call])
        counts = [
            input_tokens(llm.invoke([HumanMessage(QUESTION), message, ToolMessage("5", tool_call_id="1")]))
            for message in (with_thought, in_blocks, AIMessage("", tool_calls=[call]))
        ]
    assert counts[0] == counts[1] > counts[2]


def input_tokens(message: AIMessage) -> int:
    assert message.usage_metadata is not None
    return message.usage_metadata["input_tokens"]


def test_a_text_prompt_has_no_thinking_to_switch(tiny_chat: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="enable_thinking is for the chat template"):
        VLLM(**tiny_chat).invoke("Hello", enable_thinking=True)
