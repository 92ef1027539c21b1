"""Tools and tool calls in OpenAI's form, and as agents want them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ToolCallBlock,
)
from llama_index.core.tools import FunctionTool, ToolMetadata
from pydantic import BaseModel

from llama_index_vllm_local import VLLM
from llama_index_vllm_local._tools import (
    in_order_of_calls,
    to_openai_tool_choice,
    to_openai_tools,
    to_tool_selections,
)
from shared_engine.errors import InvalidInputError, LengthFinishReasonError

ADD_TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
NAMED_ADD = {"type": "function", "function": {"name": "add"}}
T = TypeVar("T")


class Size(BaseModel):
    width: int


class Box(BaseModel):
    size: Size


class Put(BaseModel):
    box: Box


class Take(BaseModel):
    use: Callable[[], None]


class Crate(BaseModel, Generic[T]):
    content: T


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def tool(fn: Callable[..., Any] = add, **given: Any) -> FunctionTool:
    return FunctionTool.from_defaults(fn=fn, **given)


# ---- tools out


def test_tools_are_sent_in_openais_form_whichever_form_they_have() -> None:
    sent = to_openai_tools([tool(name="plus"), ADD_TOOL])
    assert [one["function"]["name"] for one in sent] == ["plus", "add"]
    assert sent[0]["function"]["parameters"]["required"] == ["a", "b"]
    assert sent[1] == ADD_TOOL


def test_a_schema_keeps_its_definitions() -> None:
    parameters = to_openai_tools([tool(fn_schema=Put)])[0]["function"]["parameters"]
    assert parameters["properties"]["box"] == {"$ref": "#/$defs/Box"}
    assert set(parameters["$defs"]) == {"Box", "Size"}


def test_parameters_that_are_given_already_are_not_asked_for() -> None:
    parameters = to_openai_tools([tool(partial_params={"a": 1})])[0]["function"]["parameters"]
    assert (list(parameters["properties"]), parameters["required"]) == (["b"], ["b"])


def test_a_tool_without_a_schema_takes_one_string() -> None:
    metadata = ToolMetadata(name="search", description="Search.", fn_schema=None)
    parameters = to_openai_tools([tool(tool_metadata=metadata)])[0]["function"]["parameters"]
    assert (parameters["properties"]["input"]["type"], parameters["required"]) == ("string", ["input"])


def test_a_description_may_be_long_or_missing() -> None:
    long, none = to_openai_tools(
        [tool(description="x" * 5000), tool(tool_metadata=ToolMetadata(name="none", description=None))]
    )
    assert len(long["function"]["description"]) == 5000
    assert "description" not in none["function"]


@pytest.mark.parametrize("name", ["get weather", Crate[int].model_json_schema()["title"]])
def test_a_name_is_sent_as_agents_will_look_it_up(name: str) -> None:
    assert to_openai_tools([tool(name=name)])[0]["function"]["name"] == name


def test_a_tool_that_comes_twice_is_sent_once() -> None:
    """As from an agent's list and its retriever."""
    assert len(to_openai_tools([tool(), tool()])) == 1


@pytest.mark.parametrize(("strict", "expected"), [(None, [None, True]), (True, [True, True]), (False, [False, False])])
def test_tools_are_strict_as_asked_for_or_as_they_say(strict: bool | None, expected: list[bool | None]) -> None:
    own = {"type": "function", "function": {"name": "own", "strict": True}}
    before = copy.deepcopy(own)
    sent = to_openai_tools([tool(), own], strict)
    assert [one["function"].get("strict") for one in sent] == expected
    assert own == before


class Unspeakable:
    pass


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (add, r"tools\[1\] is a function, not one of LlamaIndex's tools; wrap it: FunctionTool.from_defaults"),
        (Unspeakable(), r"tools\[1\] is a Unspeakable, not one of LlamaIndex's tools$"),
        ("add", r"tools\[1\] is a str"),
        (None, r"tools\[1\] is a NoneType"),
        ({"name": "add"}, r"tools\[1\] is not a tool in OpenAI's form, .*'function'.*: \{'name': 'add'\}"),
        ({"type": "web_search", "function": {"name": "x"}}, r"tools\[1\] is not a tool in OpenAI's form"),
        ({"type": "function", "function": {"name": ""}}, r"tools\[1\] has no name"),
        (tool(tool_metadata=ToolMetadata(name=None, description="")), r"tools\[1\] has no name"),
        (tool(name="plus", fn_schema=Put), r"tools\[1\] has the name of another tool, 'plus'"),
        (tool(fn_schema=Take), r"tools\[1\], 'add', has parameters without a JSON schema"),
    ],
)
def test_what_is_no_tool_is_refused_with_its_position(bad: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        to_openai_tools([tool(name="plus"), bad])


@pytest.mark.parametrize(
    ("choice", "required", "expected"),
    [
        (None, False, "auto"),
        (None, True, "required"),
        ("auto", True, "auto"),
        ("none", False, "none"),
        ("required", False, "required"),
        ("any", False, "required"),
        ("add", False, NAMED_ADD),
        (NAMED_ADD, False, NAMED_ADD),
        ({"type": "function", "name": "add"}, False, NAMED_ADD),  # OpenAI's Responses API
        ({"type": "tool", "name": "add"}, False, NAMED_ADD),  # Anthropic's
        ({"type": "any"}, False, "required"),
    ],
)
def test_tool_choice_takes_words_names_and_openais_form(choice: Any, required: bool, expected: Any) -> None:
    assert to_openai_tool_choice(choice, [ADD_TOOL], required) == expected


def test_a_tool_that_is_called_like_a_word_can_be_chosen() -> None:
    sent = to_openai_tools([tool(name="any")])
    assert to_openai_tool_choice("any", sent) == {"type": "function", "function": {"name": "any"}}


@pytest.mark.parametrize("choice", ["ad", {"type": "function", "function": {"name": "ad"}}])
def test_a_tool_choice_that_names_no_tool_is_refused_with_the_nearest(choice: Any) -> None:
    with pytest.raises(InvalidInputError, match="is not the name of a tool; did you mean 'add'"):
        to_openai_tool_choice(choice, [ADD_TOOL])


def test_results_are_sent_in_the_order_of_their_calls() -> None:
    """Agents note them as the tools end, and templates without ids would give the one for the other."""
    calls = [{"id": name} for name in ("a", "b", "c")]
    history: list[dict[str, Any]] = [
        {"role": "user"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c"},
        {"role": "tool", "tool_call_id": "a"},
        {"role": "tool", "tool_call_id": "b"},
        {"role": "assistant", "tool_call_id": "a"},
        {"role": "assistant", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "b"},
        {"role": "tool", "tool_call_id": "other"},
        {"role": "tool", "tool_call_id": "a"},
        {"role": "tool"},
    ]
    assert in_order_of_calls(history) == [0, 1, 3, 4, 2, 5, 6, 7, 8, 9, 10]


def test_results_of_calls_with_one_id_stay_as_they_came() -> None:
    same = [{"id": ""}, {"id": ""}]
    history = [{"role": "assistant", "tool_calls": same}, *({"role": "tool", "tool_call_id": ""} for _ in same)]
    assert in_order_of_calls(history) == [0, 1, 2]


# ---- calls in


def answered(*arguments: Any, finish_reason: str | None = "tool_calls", delta: str | None = None) -> ChatResponse:
    """An answer that calls ``weather`` with these arguments; with ``delta``: one that streams."""
    blocks = [ToolCallBlock(tool_call_id="c", tool_name="weather", tool_kwargs=text) for text in arguments]
    return ChatResponse(
        message=ChatMessage(role="assistant", blocks=blocks),
        raw={"choices": [{"finish_reason": finish_reason}]},
        delta=delta,
    )


def arguments_of(response: ChatResponse) -> list[dict[str, Any]]:
    return [selection.tool_kwargs for selection in to_tool_selections(response)]


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
def test_while_an_answer_streams_arguments_are_read_as_far_as_they_go(arguments: Any, expected: dict[str, Any]) -> None:
    assert arguments_of(answered(arguments, finish_reason=None, delta="")) == [expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ("null", {}),
        ('{"city": "Paris"}', {"city": "Paris"}),
        ('{"city": "New\nYork"}', {"city": "New\nYork"}),
        ({"city": "Paris"}, {"city": "Paris"}),
    ],
)
@pytest.mark.parametrize("delta", [None, ""], ids=["whole", "streamed"])
def test_arguments_of_an_answer_that_has_ended(arguments: Any, expected: dict[str, Any], delta: str | None) -> None:
    assert arguments_of(answered(arguments, delta=delta)) == [expected]


@pytest.mark.parametrize("delta", [None, ""], ids=["whole", "streamed"])
def test_a_call_that_was_cut_off_cannot_be_made(delta: str | None) -> None:
    """Core would make 3 of it where 30 was meant."""
    response = answered('{"a": 12, "b": 3', finish_reason="length", delta=delta)
    with pytest.raises(
        LengthFinishReasonError, match=r"the call of 'weather' was cut off .* raise max_tokens"
    ) as raised:
        to_tool_selections(response)
    assert raised.value.text == '{"a": 12, "b": 3'


def test_calls_that_were_whole_before_the_cut_can_be_made() -> None:
    assert arguments_of(answered("", '{"a": 1}', finish_reason="length")) == [{}, {"a": 1}]


@pytest.mark.parametrize("last", ["", '{"a": '])
def test_the_last_call_before_the_cut_must_be_whole(last: str) -> None:
    with pytest.raises(LengthFinishReasonError):
        to_tool_selections(answered('{"a": 1}', last, finish_reason="length"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"a": 12,, "b": 30}', r"not valid JSON \(.*char 9\)"),
        ('{"a": 12, "b": 3', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('"Paris"', "not a JSON object"),
        ("3", "not a JSON object"),
    ],
)
@pytest.mark.parametrize("finish_reason", ["tool_calls", "stop", None])
def test_arguments_that_are_no_json_object_are_an_error(arguments: str, problem: str, finish_reason: Any) -> None:
    with pytest.raises(ValueError, match=rf"the call of 'weather' is not made: its arguments are {problem}") as raised:
        to_tool_selections(answered(arguments, finish_reason=finish_reason))
    assert repr(arguments) in str(raised.value)
    assert "VLLM(strict=True)" in str(raised.value)


@pytest.mark.parametrize("raw", [None, {}, {"choices": []}, "text"])
def test_an_answer_that_tells_no_reason_is_taken_for_whole(raw: Any) -> None:
    response = answered('{"a": 1')
    response.raw = raw
    with pytest.raises(ValueError, match="not valid JSON"):
        to_tool_selections(response)


def test_calls_with_one_id_are_all_made() -> None:
    selections = to_tool_selections(answered('{"city": "Oslo"}', '{"city": "Madrid"}'))
    assert [(one.tool_id, one.tool_kwargs["city"]) for one in selections] == [("c", "Oslo"), ("c", "Madrid")]


@pytest.mark.parametrize(
    ("finish_reason", "error", "message"),
    [
        ("stop", ValueError, "the model called no tool; it answered: 'Well, '"),
        ("length", LengthFinishReasonError, "the answer was cut off .* before it was complete: raise max_tokens"),
    ],
)
def test_no_call_is_an_error_only_when_asked_for(finish_reason: str, error: Any, message: str) -> None:
    llm = VLLM(model="some-org/some-model")
    response = answered(finish_reason=finish_reason)
    response.message.content = "Well, "
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(error, match=message):
        llm.get_tool_calls_from_response(response)


# ---- models that have no place for tools


def test_a_model_without_a_tool_parser_is_asked_for_no_call() -> None:
    llm = VLLM(model="some-org/some-model")
    with pytest.raises(InvalidInputError, match=r"no tool-call parser is known for some-org/.*'hermes'"):
        llm.chat_with_tools([tool()], "What is 2 + 3?")


def test_a_model_that_is_sent_text_gets_no_tools() -> None:
    llm = VLLM(model="some-org/some-model", is_chat_model=False)
    with pytest.raises(InvalidInputError, match="this model has no chat template"):
        llm.chat_with_tools([tool()], "What is 2 + 3?")
    request = llm._chat_request([ChatMessage(content="Hi")], {"tools": [], "parallel_tool_calls": True})
    assert request.prompt
