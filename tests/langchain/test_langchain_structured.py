"""Structured output: what is asked for, how answers are parsed, and what becomes of one that was cut off."""

from __future__ import annotations

import json
import pickle
import re
import threading
from typing import Any, Literal, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel, Field

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._errors import LengthFinishReasonError as LangChainLengthError
from langchain_vllm_local._parsers import output_parser
from langchain_vllm_local._structured import Method, constraint, json_schema
from shared_engine import InvalidInputError, LengthFinishReasonError

QUESTION = "Anna is 31 years old. Extract the person."


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=150)


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


JSON_SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
NAMED = {"name": "Person", "schema": JSON_SCHEMA, "strict": True}


# ---- what is asked for


def response_format(schema: Any, strict: bool | None = None) -> dict[str, Any]:
    sent = json_schema(schema, strict).response_format()
    assert sent["type"] == "json_schema"
    return dict(sent["json_schema"])


@pytest.mark.parametrize("schema", [Person, PersonDict, {**JSON_SCHEMA, "title": "Person"}])
def test_a_schema_becomes_a_response_format(schema: Any) -> None:
    sent = response_format(schema)
    assert sent["name"].startswith("Person")
    assert sent["schema"]["properties"].keys() >= {"name"}
    assert "strict" not in sent
    assert response_format(schema, True)["strict"] is True


@pytest.mark.parametrize("schema", [NAMED, {"type": "json_schema", "json_schema": NAMED}])
def test_openais_own_forms_are_sent_as_they_are(schema: dict[str, Any]) -> None:
    assert response_format(schema) == NAMED
    assert json_schema(schema, None).tool() == {
        "type": "function",
        "function": {"name": "Person", "parameters": JSON_SCHEMA, "strict": True},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "f", "parameters": JSON_SCHEMA},
        {"type": "function", "function": {"name": "f", "parameters": JSON_SCHEMA}},
    ],
)
def test_openais_functions_and_tools_are_schemas_too(schema: dict[str, Any]) -> None:
    assert response_format(schema) == {"name": "f", "schema": JSON_SCHEMA}


def test_limits_of_a_field_reach_the_server() -> None:
    age = response_format(Person)["schema"]["properties"]["age"]
    assert (age["minimum"], age["maximum"]) == (0, 150)


class Node(BaseModel):
    """A tree."""

    children: list[Node]


ROOTS = [
    {"type": "array", "items": {"type": "integer"}, "title": "Numbers"},
    {"type": "object", "additionalProperties": {"type": "number"}},
    {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
    {"enum": ["a", "b"]},
]


@pytest.mark.parametrize("schema", ROOTS)
def test_a_schema_whose_root_has_no_properties_is_sent_whole(schema: dict[str, Any]) -> None:
    assert response_format(schema)["schema"] == schema


def test_a_recursive_class_keeps_its_recursion() -> None:
    schema = response_format(Node)["schema"]
    (reference,) = {schema["$defs"]["Node"]["properties"]["children"]["items"]["$ref"]}
    assert reference == "#/$defs/Node"


@pytest.mark.parametrize(("kind", "expected"), [(list[int], "array"), (dict[str, int], "object"), (int, "integer")])
def test_other_types_are_schemas_as_well(kind: Any, expected: str) -> None:
    assert response_format(kind)["schema"]["type"] == expected


def test_arguments_of_a_call_are_an_object() -> None:
    with pytest.raises(InvalidInputError, match="use method 'json_schema'"):
        ChatVLLM(model="org/name").with_structured_output(list[int], method="function_calling")
    with pytest.raises(InvalidInputError, match="it can't be converted to a JSON schema"):
        ChatVLLM(model="org/name").with_structured_output(threading.Lock)


@pytest.mark.parametrize(
    ("schema", "method", "sent"),
    [
        (["yes", "no"], "choice", {"choice": ["yes", "no"]}),
        (("yes", "no"), "choice", {"choice": ["yes", "no"]}),
        (Literal["yes", "no"], "choice", {"choice": ["yes", "no"]}),
        (r"\d+", "regex", {"regex": r"\d+"}),
        ('root ::= "a"', "grammar", {"grammar": 'root ::= "a"'}),
    ],
)
def test_vllms_own_constraints(schema: Any, method: Method, sent: dict[str, Any]) -> None:
    assert constraint(schema, method) == sent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schema": Person, "method": "json_shema"}, "did you mean 'json_schema'"),
        ({"schema": Person, "method": "xml"}, "known: json_schema, function_calling"),
        ({"schema": None}, "needs one"),
        ({"schema": Person, "method": "json_mode", "strict": True}, "strict = True"),
        ({"schema": "yes", "method": "choice"}, "a list of strings"),
        ({"schema": [], "method": "choice"}, "a list of strings"),
        ({"schema": [1, 2], "method": "choice"}, "a list of strings"),
        ({"schema": ["a"], "method": "regex"}, "takes a string"),
        ({"schema": Person, "tools": [PersonDict]}, "include_raw=True"),
        ({"schema": Person, "temperatur": 1}, "did you mean 'temperature'"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        ChatVLLM(model="org/name").with_structured_output(**arguments).invoke(QUESTION)


# ---- how answers are parsed


def parsed(schema: Any, method: Method, message: AIMessage) -> Any:
    return output_parser(schema, method, "Person").parse_result([ChatGeneration(message=message)])


def answer(text: str = "", finish_reason: str = "stop", **fields: Any) -> AIMessage:
    return AIMessage(text, response_metadata={"finish_reason": finish_reason}, **fields)


def call(**arguments: Any) -> ToolCall:
    return ToolCall(name="Person", args=arguments, id="1", type="tool_call")


LETTERS = {"type": "string", "pattern": "a+"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"allOf": [LETTERS, {"enum": ["a", "b"]}]}, ".allOf"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, ".allOf"),
        ({"$ref": "https://example.com/schema.json"}, ".$ref"),
        ({"type": "string", "not": {"const": "b"}}, ".not"),
        ({"if": LETTERS, "then": {"minLength": 2}}, ".if"),
        ({"type": "integer", "multipleOf": 5}, ".multipleOf"),
        ({**LETTERS, "maxLength": 5}, ".maxLength"),
        ({"anyOf": [{"type": "null"}, {"type": "array", "contains": LETTERS}]}, ".anyOf[1].contains"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_would_check_is_refused_before_anything_starts(
    method: Method, part: dict[str, Any], where: str
) -> None:
    """vLLM ignores some of these, and the answer is wrong without an error."""
    schema = {"title": "It", "type": "object", "properties": {"not": part}, "required": ["not"]}
    with pytest.raises(InvalidInputError, match=rf"schema\.properties\.not{re.escape(where)}: vLLM can't hold"):
        ChatVLLM(model="org/name").with_structured_output(schema, method=method)
    ChatVLLM(base_url="http://127.0.0.1:9").with_structured_output(schema, method=method)  # others may


def test_what_can_be_held_or_is_a_remark_is_not_refused() -> None:
    part = {
        "allOf": [{"$ref": "#/$defs/not"}], "title": "A", "default": {"not": 1}, "description": "if", "type": "string",
    }  # fmt: skip
    tags = {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "path"}}
    schema = {"type": "object", "properties": {"if": part, "tags": tags}, "$defs": {"not": LETTERS}}
    ChatVLLM(model="org/name").with_structured_output(schema)
    ChatVLLM(model="org/name").with_structured_output(set[str])
    ChatVLLM(model="org/name").with_structured_output(PersonDict)


def test_each_method_gives_its_value() -> None:
    text = '{"name": "Anna", "age": 31}'
    assert parsed(Person, "json_schema", answer(text)) == Person(name="Anna", age=31)
    assert parsed(Person, "json_mode", answer(text)) == Person(name="Anna", age=31)
    assert parsed(PersonDict, "json_schema", answer(text)) == {"name": "Anna", "age": 31}
    assert parsed(None, "json_mode", answer(text)) == {"name": "Anna", "age": 31}
    called = answer(tool_calls=[call(name="Anna", age=31)])
    assert parsed(Person, "function_calling", called) == Person(name="Anna", age=31)
    assert parsed({**JSON_SCHEMA, "title": "Person"}, "function_calling", called) == {"name": "Anna", "age": 31}
    assert parsed(["yes", "no"], "choice", answer("yes")) == "yes"


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    "text", ['{"name": "Anna"}', '{"name": "Anna", "age": 200}', '{"name": "Anna", "age": 3', "Anna is 31", ""]
)
def test_an_answer_that_is_not_valid_is_an_error(method: Method, text: str) -> None:
    with pytest.raises(OutputParserException) as caught:
        parsed(Person, method, answer(text))
    assert caught.value.llm_output == text


@pytest.mark.parametrize("text", ['{"name": "An', '{"name": "Anna", "age": 31'])
def test_json_that_never_became_whole_is_not_mended_whatever_ended_it(text: str) -> None:
    for schema in (Person, PersonDict, None):
        with pytest.raises(OutputParserException, match="not valid JSON"):
            parsed(schema, "json_mode", answer(text, finish_reason="stop"))


def test_json_in_a_fence_is_read() -> None:
    assert parsed(None, "json_mode", answer('```json\n{"a": [1]}\n```')) == {"a": [1]}
    assert parsed(list[int], "json_schema", answer("[1, 2]")) == [1, 2]


def test_arguments_that_a_class_refuses_are_the_same_error() -> None:
    with pytest.raises(OutputParserException, match="not valid for Person"):
        parsed(Person, "function_calling", answer(tool_calls=[call(name="Anna", age=200)]))


def test_a_call_that_was_not_made_or_cannot_be_read_is_an_error() -> None:
    with pytest.raises(OutputParserException, match="called no tool") as caught:
        parsed(Person, "function_calling", answer("Anna is 31"))
    assert caught.value.llm_output == "Anna is 31"
    invalid = InvalidToolCall(name="Person", args='{"name"', id="1", error="not valid JSON", type="invalid_tool_call")
    with pytest.raises(OutputParserException, match="the call of Person can't be parsed: not valid JSON"):
        parsed(Person, "function_calling", answer(invalid_tool_calls=[invalid]))


def test_a_call_of_another_tool_leaves_nothing_parsed() -> None:
    assert parsed(Person, "json_schema", answer(tool_calls=[call(name="Anna")])) is None
    assert parsed(PersonDict, "json_schema", answer(tool_calls=[call(name="Anna")])) is None


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling", "choice", "regex"])
@pytest.mark.parametrize("reason", ["length", "repetition"])
def test_an_answer_that_was_cut_off_is_never_mended(method: Method, reason: str) -> None:
    schema: Any = ["yes", "no"] if method == "choice" else r".*" if method == "regex" else PersonDict
    text = '{"name": "An'
    with pytest.raises(LengthFinishReasonError, match="raise max_tokens") as caught:
        parsed(schema, method, answer(text, finish_reason=reason))
    error = caught.value
    assert isinstance(error, OutputParserException)
    assert (error.text, error.llm_output) == (text, text)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.text, again.llm_output) == (LangChainLengthError, text, text)


def test_a_stream_of_a_class_gives_no_half_values() -> None:
    parser = output_parser(Person, "json_schema")
    pieces = [
        AIMessageChunk('{"name": "Anna", "age": 3'),
        AIMessageChunk("1}", response_metadata={"finish_reason": "stop"}),
        AIMessageChunk("", chunk_position="last"),
    ]
    assert list(parser.transform(iter(pieces))) == [Person(name="Anna", age=31)]


def test_a_stream_of_text_that_is_cut_off_has_all_of_it_in_its_error() -> None:
    parser = output_parser(["hello world"], "choice")
    pieces = [
        AIMessageChunk("hello"),
        AIMessageChunk(" wor"),
        AIMessageChunk("", response_metadata={"finish_reason": "length"}),
    ]
    stream = parser.transform(iter(pieces))
    assert [next(stream), next(stream)] == ["hello", " wor"]
    with pytest.raises(LengthFinishReasonError) as caught:
        next(stream)
    assert caught.value.text == "hello wor"


# ---- on real vLLM


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=64)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    "schema", [Person, PersonDict, Person.model_json_schema()], ids=["class", "typed dict", "json"]
)
async def test_answers_follow_the_schema(llm: ChatVLLM, schema: Any, method: Method) -> None:
    structured = llm.with_structured_output(schema, method=method)
    value = await structured.ainvoke(QUESTION)
    assert (value if isinstance(value, dict) else value.model_dump())["age"] == 31
    assert isinstance(value, Person if schema is Person else dict)
    assert [each async for each in structured.astream(QUESTION)][-1] == value
    raw = await llm.with_structured_output(schema, method=method, include_raw=True).ainvoke(QUESTION)
    assert (raw["parsed"], raw["parsing_error"]) == (value, None)
    assert isinstance(raw["raw"], AIMessage)


def test_other_types_and_roots_are_held_to(llm: ChatVLLM) -> None:
    assert llm.with_structured_output({"enum": ["red", "blue"]}).invoke("What colour is the sky?") in ("red", "blue")
    assert isinstance(llm.with_structured_output(bool).invoke("Is the sky blue?"), bool)


def test_json_mode_gives_json(llm: ChatVLLM) -> None:
    raw = llm.with_structured_output(method="json_mode", include_raw=True).invoke(QUESTION)
    assert raw["parsed"] == json.loads(raw["raw"].text)


def test_a_batch_is_parsed_one_by_one(llm: ChatVLLM) -> None:
    structured = llm.with_structured_output(Literal["yes", "no"], method="choice")
    answers = structured.batch(["Is the sky blue?", "", "Is 2 + 2 = 4?"], return_exceptions=True)
    assert all(answer in ("yes", "no") for answer in answers)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_cut_off_answer_is_a_typed_error_with_its_text(llm: ChatVLLM, method: Method, stream: bool) -> None:
    structured = llm.with_structured_output(Person, method=method, max_tokens=4)
    with pytest.raises(LengthFinishReasonError) as caught:
        list(structured.stream(QUESTION)) if stream else structured.invoke(QUESTION)
    assert isinstance(caught.value, OutputParserException)
    if not stream or method != "function_calling":  # vLLM streams no call before it knows its name
        assert caught.value.text
    raw = llm.with_structured_output(Person, method=method, max_tokens=4, include_raw=True).invoke(QUESTION)
    assert isinstance(raw["parsing_error"], LengthFinishReasonError)
    assert raw["parsed"] is None
    assert raw["raw"].response_metadata["finish_reason"] == "length"


def test_choice_regex_and_grammar_hold_the_answer(llm: ChatVLLM) -> None:
    colour = "What colour is the sky?"
    assert llm.with_structured_output(["red", "blue"], method="choice").invoke(colour) in ("red", "blue")
    assert llm.with_structured_output(r"[0-9]{3}", method="regex").invoke(colour).isdigit()
    assert llm.with_structured_output('root ::= "a" "b" "c"', method="grammar").invoke(colour) == "abc"
    assert llm.bind(structured_outputs={"choice": ["green"]}).invoke(colour).text == "green"


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def test_the_model_may_call_a_tool_instead(llm: ChatVLLM) -> None:
    structured = llm.with_structured_output(Person, tools=[get_weather], include_raw=True)
    called = structured.invoke("What is the weather in Paris?")
    assert [each["name"] for each in called["raw"].tool_calls] == ["get_weather"]
    assert (called["parsed"], called["parsing_error"]) == (None, None)
