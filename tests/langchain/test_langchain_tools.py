"""LangChain's tools, and the choice among them, as the engine takes them."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_vllm_local._tools import to_openai_tool_choice, to_openai_tools
from shared_engine import (
    InvalidInputError,
)


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
        ("", None),
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
