"""Tools and tool calls in OpenAI's form, and as agents want them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool

from llama_index_vllm_local._tools import to_openai_tool_choice, to_openai_tools, to_tool_selections
from shared_engine import (
    InvalidInputError,
    TokenUsage,
)

ADD_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
ADD_TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
USAGE = TokenUsage(prompt_tokens=7, completion_tokens=5)
COUNTS = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_tools_are_sent_in_openais_form_whichever_form_they_have() -> None:
    sent = to_openai_tools([FunctionTool.from_defaults(fn=add), ADD_TOOL])
    assert [tool["function"]["name"] for tool in sent] == ["add", "add"]
    assert sent[0]["function"]["parameters"]["required"] == ["a", "b"]


@pytest.mark.parametrize(
    ("choice", "required", "expected"),
    [
        (None, False, "auto"),
        (None, True, "required"),
        ("auto", True, "auto"),
        ("none", False, "none"),
        ("any", False, "required"),
        ("add", False, {"type": "function", "function": {"name": "add"}}),
        ({"type": "function", "function": {"name": "add"}}, False, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tool_choice_takes_words_names_and_openais_form(choice: Any, required: bool, expected: Any) -> None:
    assert to_openai_tool_choice(choice, [ADD_TOOL], required) == expected


def test_a_tool_choice_that_names_no_tool_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match="'ad' names no tool; did you mean 'add'"):
        to_openai_tool_choice("ad", [ADD_TOOL])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("{", {}),
        ('{"days": 3, "city": "Par', {"days": 3, "city": None}),
        ('{"city": "Paris"}', {"city": "Paris"}),
        ("[1]", {}),
        ("nonsense", {}),
        ({"city": "Paris"}, {"city": "Paris"}),
    ],
)
def test_arguments_are_read_as_far_as_they_go(arguments: Any, expected: dict[str, Any]) -> None:
    message = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="weather", tool_kwargs=arguments)])
    assert to_tool_selections(message)[0].tool_kwargs == expected
