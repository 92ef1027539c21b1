"""Calls that a server left in the text of an answer, and what is only words about calls."""

from __future__ import annotations

from typing import Any

import pytest

from shared_engine.adapting.left_calls import with_left_calls
from shared_engine.results import Choice, GenerationResult, TokenUsage, ToolCall

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "now")]


def result(text: str, **more: Any) -> GenerationResult:
    choice = Choice(text=text, **{"finish_reason": "stop", **more})
    return GenerationResult(choices=(choice,), usage=TokenUsage(), request_id="1", model="m")


def call(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (call('{"name": "add", "arguments": {"a": 1, "b": oops}}'), [("add", '{"a": 1, "b": oops}}')]),
        ('<tool_call>\n{"name": "add", "arguments": {"a": "None', [("add", '{"a": "None')]),
        (call('{"name": "add", "arguments": {"a": 1}'), [("add", '{"a": 1}')]),
        (call('{"name": "add", "parameters": {"a": 1}}'), [("add", '"name": "add", "parameters": {"a": 1}}')]),
        (
            call('{"name": "add", "arguments": {"a": 1}}') + "\n" + call('{"name": "now", "arguments": {'),
            [("add", '{"a": 1}'), ("now", "{")],
        ),
        (call('{"name": "now", "arguments": null}'), [("now", "null")]),
    ],
)
@pytest.mark.parametrize("before", ["Well.", ""])
def test_they_are_calls_again_as_the_model_wrote_them(text: str, calls: list[tuple[str, str]], before: str) -> None:
    choice = with_left_calls(result(f"{before}\n{text}"), TOOLS).choices[0]
    assert [(one.name, one.arguments) for one in choice.tool_calls] == calls
    assert choice.text == before
    assert len({one.id for one in choice.tool_calls}) == len(calls)
    assert all(one.id for one in choice.tool_calls)


@pytest.mark.parametrize("text", [call('{"name": "unknown", "arguments": {}}'), '<tool_call>\n{"name": "unknown'])
def test_an_answer_that_begins_with_the_mark_is_a_call_of_whatever_it_names(text: str) -> None:
    """An agent tells the model that there is no such tool."""
    choice = with_left_calls(result(text), TOOLS).choices[0]
    assert [one.name for one in choice.tool_calls] == ["unknown"]


@pytest.mark.parametrize(
    "given",
    [
        result("Hello!"),
        result("A call begins with <tool_call>."),
        result("So: " + call('{"name": "unknown", "arguments": {}}')),
        result("<tool_call> begins a call."),
        result("So: " + call('{"name": "add", "arguments": {}}') + " such as <tool_call>"),
        result(call('{"name": "add", "arguments": {"a'), finish_reason="length"),
        result("<tool_call>", tool_calls=(ToolCall(name="add", arguments="{}", id="1"),)),
    ],
)
def test_anything_else_stays_as_it_is(given: GenerationResult) -> None:
    assert with_left_calls(given, TOOLS) == given


def test_without_tools_all_is_text() -> None:
    given = result(call('{"name": "add", "arguments": {}}'))
    assert with_left_calls(given, None) is given
    assert with_left_calls(given, []) is given
