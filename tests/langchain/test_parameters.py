"""A call's parameters win over the constructor's, under whichever name either says it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from langchain_vllm_local import ChatVLLM
from shared_engine import InvalidInputError
from shared_engine.params import THINKING_SWITCHES
from shared_engine.request.bodies import chat_body


def body(constructor: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    """What is sent."""
    request = ChatVLLM(model="Qwen/Qwen3-4B", **constructor)._request([HumanMessage("Hello")], None, call)
    return chat_body(**request)


ON, OFF = dict.fromkeys(THINKING_SWITCHES, True), dict.fromkeys(THINKING_SWITCHES, False)


@pytest.mark.parametrize(
    ("constructor", "call", "variables"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": True}, ON),
        ({"enable_thinking": True}, {"reasoning_effort": "none"}, OFF),
        ({"reasoning_effort": "high"}, {"enable_thinking": False}, OFF),
        ({"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {"chat_template_kwargs": {"x": 1}}, {**ON, "x": 1}),
        ({"chat_template_kwargs": {"x": 1}}, {"chat_template_kwargs": {"y": 2}}, {"x": 1, "y": 2}),
        ({"chat_template_kwargs": {"x": 1, "thinking": True}}, {"enable_thinking": False}, {**OFF, "x": 1}),
        ({"enable_thinking": False}, {"extra_body": {"chat_template_kwargs": {"x": 1}}}, {**OFF, "x": 1}),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, {"enable_thinking": True}, ON),
        (
            {"extra_body": {"chat_template_kwargs": {"x": 1}}},
            {"extra_body": {"chat_template_kwargs": {"x": 2}}},
            {"x": 2},
        ),
    ],
)
def test_thinking_and_the_templates_variables(
    constructor: dict[str, Any], call: dict[str, Any], variables: dict[str, Any]
) -> None:
    assert body(constructor, call)["chat_template_kwargs"] == variables


def test_a_switch_drops_the_constructors_effort() -> None:
    assert "reasoning_effort" not in body({"reasoning_effort": "high"}, {"enable_thinking": False})


JSON = {"type": "json_object"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_a_form_of_the_call_replaces_the_constructors() -> None:
    regex = {"structured_outputs": {"regex": "a+"}}
    assert body(regex, {})["structured_outputs"] == {"regex": "a+"}
    sent = body(regex, {"response_format": JSON})
    assert (sent["response_format"], "structured_outputs" in sent) == (JSON, False)
    assert body(regex, {"structured_outputs": {"choice": ["a"]}})["structured_outputs"] == {"choice": ["a"]}
    forced = body(regex, {"tools": [TOOL], "tool_choice": "f"})
    assert "structured_outputs" not in forced


def test_two_forms_in_one_call_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="response_format and structured_outputs"):
        body({}, {"response_format": JSON, "structured_outputs": {"regex": "a"}})


@pytest.mark.parametrize("where", ["constructor", "call"])
def test_several_answers_cannot_be_streamed_wherever_their_number_was_given(where: str) -> None:
    several = {"extra_body": {"n": 2}}
    llm = ChatVLLM(model="Qwen/Qwen3-4B", **(several if where == "constructor" else {}))
    with pytest.raises(InvalidInputError, match="n = 2: one answer can be streamed"):
        list(llm.stream("Hello", **({} if where == "constructor" else several)))


@pytest.mark.parametrize("where", ["constructor", "call"])
def test_tools_beside_a_form_are_strict_wherever_the_form_was_given(where: str) -> None:
    form = {"structured_outputs": {"regex": "a"}}
    sent = body(*((form, {"tools": [TOOL]}) if where == "constructor" else ({}, {**form, "tools": [TOOL]})))
    assert sent["tools"][0]["function"]["strict"] is True
    assert "strict" not in body({}, {"tools": [TOOL]})["tools"][0]["function"]
