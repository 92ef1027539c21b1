"""What can't be sent is refused before anything starts, with its position."""

from __future__ import annotations

from typing import Any

import pytest

from shared_engine import InvalidInputError
from shared_engine.request.checks import (
    check_items,
    check_messages,
    check_number,
    check_prompt,
    check_prompts,
    check_tools,
)

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ("Hello", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        ([], "empty conversation"),
        (["Hello"], r"messages\[0\] must be a dict"),
        ([*HELLO, {"role": "robot", "content": "x"}], r"messages\[1\] has the unknown role 'robot'"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content must be a string or a list"),
        ([{"role": "user", "content": None}], r"messages\[0\].content"),
        ([{"role": "user", "content": [5]}], r"messages\[0\].content\[0\]"),
    ],
)
def test_a_bad_conversation_is_refused_with_its_position(messages: Any, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part):
        check_messages(messages)


@pytest.mark.parametrize(("prompt", "part"), [(5, "must be a string, got int"), ("", "is empty"), (None, "NoneType")])
def test_a_bad_prompt_is_refused_with_its_position(prompt: Any, part: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"prompts\[3\].*{part}"):
        check_prompt(prompt, "prompts[3]")


def test_prompts_are_a_list_of_prompts() -> None:
    assert check_prompts(("a", "b")) == ["a", "b"]
    with pytest.raises(InvalidInputError, match="prompts must be a list of strings, got str: 'one string'"):
        check_prompts("one string")
    with pytest.raises(InvalidInputError, match=r"prompts\[1\] is empty"):
        check_prompts(["a", ""])


def test_texts_may_be_empty_but_are_strings() -> None:
    assert check_items(("a", ""), "texts", "raise") == (["a", ""], {})
    with pytest.raises(InvalidInputError, match=r"texts\[1\] must be a string, got int"):
        check_items(["a", 1], "texts", "raise")


@pytest.mark.parametrize("value", [0, True, 1.5, "3"])
def test_a_number_is_whole_and_large_enough(value: Any) -> None:
    check_number("top_n", None, 1)
    check_number("top_n", 1, 1)
    with pytest.raises(InvalidInputError, match=r"top_n = .*: must be a whole number, 1 or more"):
        check_number("top_n", value, 1)


@pytest.mark.parametrize("tools", ["f", 5, {"type": "function"}, iter([])])
def test_tools_are_a_list_of_dicts(tools: Any) -> None:
    with pytest.raises(InvalidInputError, match="tools must be a list of tools such as"):
        check_tools(tools)
    with pytest.raises(InvalidInputError, match=r"tools\[1\] must be a dict, got"):
        check_tools([{"type": "function"}, tools if not isinstance(tools, dict) else [tools]])
    assert check_tools(({"type": 5},)) == ({"type": 5},)
