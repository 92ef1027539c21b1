"""Structured output: what the server and the model are told of a schema, and types of every kind as answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar
from uuid import UUID

import pytest
import typing_extensions
from aiohttp import web
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._parsers import output_parser
from langchain_vllm_local._structured import Method, json_schema
from shared_engine import InvalidInputError
from shared_engine.schemas.patterns import FORMATS
from tests.support.remote_server import RemoteServer, chat_answer

QUESTION = "Describe the car."
TEXT = '{"origin": "JAPAN", "seen": "2024-05-01T10:00:00", "mail": "a@b", "tags": ["x"]}'


class Car(BaseModel):
    """A car."""

    origin: str = Field(description="country in UPPERCASE")
    seen: NaiveDatetime
    mail: str = Field(pattern="@")
    tags: list[str]


WAYS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda llm: llm.invoke(QUESTION),
    "ainvoke": lambda llm: asyncio.run(llm.ainvoke(QUESTION)),
    "stream": lambda llm: list(llm.stream(QUESTION))[-1],
    "batch": lambda llm: llm.batch([QUESTION])[0],
    "abatch": lambda llm: asyncio.run(llm.abatch([QUESTION]))[0],
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def llm(server: RemoteServer) -> ChatVLLM:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        answer = chat_answer(TEXT)
        if isinstance(body.get("tool_choice"), dict):
            function = {"name": body["tool_choice"]["function"]["name"], "arguments": TEXT}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "1", "type": "function", "function": function}]  # type: ignore[assignment]
            answer["choices"][0]["message"] = message
        return web.json_response(answer)

    server.handler = handler
    return ChatVLLM(base_url=server.url, max_retries=0)


def asked(server: RemoteServer) -> dict[str, Any]:
    ((_, body),) = server.requests
    return body


@every_way
def test_the_model_is_told_the_schema_and_the_server_what_it_can_hold(
    llm: ChatVLLM, server: RemoteServer, way: str
) -> None:
    if way == "stream":
        server.streams(TEXT)
    assert WAYS[way](llm.with_structured_output(Car)) == Car.model_validate_json(TEXT)
    body = asked(server)
    said = body["messages"][0]["content"]
    assert said.startswith(f"{QUESTION}\n\nHere's a JSON schema to follow:\n")
    assert "country in UPPERCASE" in said
    sent = body["response_format"]["json_schema"]
    assert sent.keys() == {"name", "description", "schema"}
    assert sent["schema"]["properties"]["mail"]["pattern"] == "^.*@.*$"
    assert sent["schema"]["properties"]["seen"]["pattern"] == FORMATS["naive-date-time"]


@every_way
def test_the_schema_can_be_left_unsaid_and_what_has_no_end_bounded(
    llm: ChatVLLM, server: RemoteServer, way: str
) -> None:
    if way == "stream":
        server.streams(TEXT)
    WAYS[way](llm.with_structured_output(Car, show_schema=False, schema_max_length=9, schema_max_items=2))
    body = asked(server)
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    tags = body["response_format"]["json_schema"]["schema"]["properties"]["tags"]
    assert (tags["maxItems"], tags["items"]["maxLength"]) == (2, 9)


def test_as_a_tool_the_schema_is_shown_by_the_template_alone(llm: ChatVLLM, server: RemoteServer) -> None:
    structured = llm.with_structured_output(Car, method="function_calling", schema_max_items=2)
    assert structured.invoke(QUESTION) == Car.model_validate_json(TEXT)
    body = asked(server)
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    parameters = body["tools"][0]["function"]["parameters"]["properties"]
    assert parameters["origin"]["description"] == "country in UPPERCASE"
    assert parameters["mail"]["pattern"] == "^.*@.*$"
    assert parameters["tags"]["maxItems"] == 2


def test_a_schema_that_is_bound_by_hand_or_by_an_agent_is_said_too(llm: ChatVLLM, server: RemoteServer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "Car", "schema": Car.model_json_schema()}}
    llm.bind(response_format=form).invoke(QUESTION)
    assert "country in UPPERCASE" in asked(server)["messages"][0]["content"]


def test_what_is_said_is_counted(server: RemoteServer, llm: ChatVLLM) -> None:
    plain = llm.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    holding = llm.model_copy(update={"structured_outputs": {"json": {"type": "object", "description": "a b c d"}}})
    said = holding.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    assert said > plain + len(["Here's", "a", "JSON", "schema", "to", "follow:"])


# ---- types


class Colour(Enum):
    RED = "red"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    id: UUID
    colour: Colour


@dataclass
class Point:
    x: int
    colour: Colour = Colour.RED


class Pair(NamedTuple):
    a: int
    b: str


class Leaf(TypedDict):
    """A leaf.

    Args:
        size: in centimetres
    """

    size: int
    colour: NotRequired[Annotated[Colour, ..., "its colour"]]


class Branch(typing_extensions.TypedDict, total=False):
    schema: typing_extensions.Required[list[Leaf]]
    next: Optional[Branch]  # noqa: UP045  # as many write it


Item = TypeVar("Item")


class Box(BaseModel, Generic[Item]):
    content: Item


UUID_TEXT = "0b2a9a3e-6a58-4c3a-9d0f-3d1c7a6f2b10"
STRICT = {"day": "2024-05-01", "id": UUID_TEXT, "colour": "red"}


def parsed(kind: Any, method: Method, value: Any) -> Any:
    name = json_schema(kind, None).sent_name
    message = AIMessage(json.dumps(value))
    if method == "function_calling":
        message = AIMessage("", tool_calls=[{"name": name, "args": value, "id": "1", "type": "tool_call"}])
    message.response_metadata = {"finish_reason": "stop"}
    return output_parser(kind, method, name).parse_result([ChatGeneration(message=message)])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    ("kind", "value", "instance"),
    [
        (Strict, STRICT, Strict.model_validate_json(json.dumps(STRICT))),
        (Point, {"x": 1, "colour": "red"}, Point(1, Colour.RED)),
        (Leaf, {"size": 3, "colour": "red"}, {"size": 3, "colour": "red"}),
        (Branch, {"schema": [{"size": 3}], "next": None}, {"schema": [{"size": 3}], "next": None}),
        (dict[Colour, int], {"red": 1}, {Colour.RED: 1}),
        (Box[int], {"content": 1}, Box[int](content=1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_answer_is_an_instance_of_what_was_asked_for(kind: Any, value: Any, instance: Any, method: Method) -> None:
    found = parsed(kind, method, value)
    assert (found, type(found)) == (instance, type(instance))


@pytest.mark.parametrize(
    ("kind", "value", "instance"),
    [
        (Colour, "red", Colour.RED),
        (list[Point], [{"x": 1}], [Point(1)]),
        (Point | Pair, {"x": 1}, Point(1)),
        (Literal["a", "b"], "a", "a"),
        (set[int], [1, 1], {1}),
        (date, "2024-05-01", date(2024, 5, 1)),
    ],
    ids=str,
)
def test_so_is_one_of_a_type_that_is_no_object(kind: Any, value: Any, instance: Any) -> None:
    assert parsed(kind, "json_schema", value) == instance


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize(
    ("kind", "value"), [(Point, {"x": "a"}), (Leaf, {"size": "big"}), (Branch, {}), (dict[int, int], {"a": 1})]
)
def test_an_answer_that_the_type_refuses_is_an_error(kind: Any, value: Any, method: Method) -> None:
    with pytest.raises(OutputParserException, match="not valid for"):
        parsed(kind, method, value)


def test_typed_dicts_of_either_module_have_schemas_with_what_is_said_of_their_keys() -> None:
    leaf = json_schema(Leaf, None)
    assert (leaf.name, leaf.description) == ("Leaf", "A leaf.")
    assert leaf.schema["required"] == ["size"]
    assert leaf.schema["properties"]["size"]["description"] == "in centimetres"
    assert leaf.schema["properties"]["colour"]["description"] == "its colour"
    branch = json_schema(Branch, None).schema["$defs"]["Branch"]
    assert branch["required"] == ["schema"]
    assert branch["properties"]["next"]["anyOf"][0] == {"$ref": "#/$defs/Branch"}

    class Unknown(TypedDict):
        x: Callable[[int], int]

    with pytest.raises(InvalidInputError, match="it can't be converted to a JSON schema"):
        json_schema(Unknown, None)


class Tree(TypedDict):
    age: Annotated[int, Field(ge=0, le=5), "in years"]
    height: Annotated[float, Field(gt=0, description="in metres")]
    leaves: list[Annotated[Leaf, "a leaf"]]
    counts: NotRequired[Annotated[dict[str, Annotated[int, Field(lt=9)]] | None, ..., "by name"]]


def test_bounds_and_descriptions_of_a_typed_dict_s_keys_are_kept_wherever_they_stand() -> None:
    properties = json_schema(Tree, None).schema["properties"]
    age = {name: properties["age"][name] for name in ("minimum", "maximum", "description")}
    assert age == {"minimum": 0, "maximum": 5, "description": "in years"}
    assert (properties["height"]["exclusiveMinimum"], properties["height"]["description"]) == (0, "in metres")
    assert properties["leaves"]["items"] == {"$ref": "#/$defs/Leaf"}
    assert properties["counts"]["description"] == "by name"
    assert properties["counts"]["anyOf"][0]["additionalProperties"] == {"exclusiveMaximum": 9, "type": "integer"}
    value = {"age": 5, "height": 1.5, "leaves": [{"size": 3}]}
    assert parsed(Tree, "json_schema", value) == value
    with pytest.raises(OutputParserException, match="not valid for"):
        parsed(Tree, "json_schema", {**value, "age": 6})


def test_a_name_is_one_that_every_server_takes() -> None:
    form = json_schema(Box[list[int]], None)
    assert form.response_format()["json_schema"]["name"] == form.tool()["function"]["name"] == "Box_list_int_"


@every_way
def test_a_typed_dict_with_keys_that_may_be_left_out_is_asked_for_in_every_way(server: RemoteServer, way: str) -> None:
    """Core makes its own JSON of the schema for its traces, and can't of such a class."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(chat_answer('{"size": 3}'))

    server.handler = handler
    if way == "stream":
        server.streams('{"size": 3}')
    llm = ChatVLLM(base_url=server.url, max_retries=0)
    assert WAYS[way](llm.with_structured_output(Leaf)) == {"size": 3}
    if way != "stream":
        called = WAYS[way](llm.with_structured_output(Leaf, method="function_calling", include_raw=True))
        assert "called no tool" in str(called["parsing_error"])
