"""The schema of a request in Engine: what is sent of it, what the conversation says of it, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, InvalidInputError
from tests.support.remote_server import RemoteServer, running_server

HELLO: list[Any] = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mail": {"type": "string", "pattern": "@", "description": "in lower case"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["mail", "tags"],
}
HELD = {"type": "string", "pattern": "^.*@.*$", "description": "in lower case"}
FORM = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}


def with_part(part: dict[str, Any], **named: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"part": part}}
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **named}}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def stream(engine: Engine, **options: Any) -> Any:
    return list(engine.stream_chat(HELLO, **options))


def astream(engine: Engine, **options: Any) -> Any:
    async def collect() -> list[Any]:
        return [chunk async for chunk in engine.astream_chat(HELLO, **options)]

    return asyncio.run(collect())


WAYS: dict[str, Callable[..., Any]] = {
    "chat": lambda engine, **options: engine.chat(HELLO, **options),
    "achat": lambda engine, **options: asyncio.run(engine.achat(HELLO, **options)),
    "stream": stream,
    "astream": astream,
    "batch": lambda engine, **options: engine.chat_batch([HELLO], **options),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_form = pytest.mark.parametrize(
    "form",
    [
        {"response_format": FORM},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"extra_body": {"response_format": FORM}},
    ],
    ids=["response_format", "structured_outputs", "text", "extra_body"],
)


def sent_schema(body: dict[str, Any]) -> Any:
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"]
    return body["structured_outputs"]["json"]


@every_way
@every_form
def test_the_users_message_says_the_schema_and_the_server_gets_the_form_that_it_holds(
    server: RemoteServer, way: str, form: dict[str, Any]
) -> None:
    if "stream" in way:
        server.streams("{}")
    WAYS[way](Engine(base_url=server.url, max_retries=0), **form)
    ((_, body),) = server.requests
    assert sent_schema(body)["properties"]["mail"] == HELD
    assert body["messages"][0] == HELLO[0]
    said = body["messages"][1]["content"]
    assert said.startswith("Hello\n\nHere's a JSON schema to follow:\n")
    assert json.dumps(SCHEMA) in said, "the schema as it was given"
    assert HELLO[1]["content"] == "Hello"


@every_way
def test_the_schema_can_be_left_unsaid_and_what_has_no_end_bounded(server: RemoteServer, way: str) -> None:
    if "stream" in way:
        server.streams("{}")
    quiet = Engine(base_url=server.url, max_retries=0, show_schema=False, schema_max_items=9)
    WAYS[way](quiet, response_format=FORM, schema_max_length=20, schema_max_items=2)
    WAYS[way](quiet, response_format=FORM, show_schema=True)
    (_, first), (_, second) = server.requests
    assert first["messages"] == HELLO
    assert sent_schema(first)["properties"]["tags"] == {
        "type": "array",
        "items": {"type": "string", "maxLength": 20},
        "maxItems": 2,
    }
    assert "Here's a JSON schema" in second["messages"][1]["content"]
    assert sent_schema(second)["properties"]["tags"]["maxItems"] == 9
    assert not {"show_schema", "schema_max_length", "schema_max_items"} & first.keys()


def test_a_bound_refuses_nothing() -> None:
    engine = Engine(model="org/name", schema_max_length=9, schema_max_items=2)
    properties = {"mail": {"type": "string", "pattern": "@"}, "file": {"type": "string", "format": "path"}}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "it", "schema": {"type": "object", "properties": properties}},
    }
    request = engine._chat_request(HELLO, engine._params(None, {"response_format": form}), None, None)
    sent = sent_schema(json.loads(request.body))["properties"]
    assert sent == {"mail": {"type": "string", "pattern": "^.*@.*$"}, "file": {"type": "string", "maxLength": 9}}


def test_a_text_prompt_is_sent_as_it_is(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, max_retries=0)
    engine.generate("Hello", response_format=FORM)
    engine.generate_batch(["Hello"], response_format=FORM)
    for _, body in server.requests:
        assert body["prompt"] == "Hello"
        assert sent_schema(body)["properties"]["mail"] == HELD


def test_other_forms_and_requests_without_one_are_sent_as_they_are(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, max_retries=0)
    forms: list[dict[str, Any]] = [
        {},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a|b"}},
        {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
    ]
    for form in forms:
        engine.chat(HELLO, **form)
    for (_, body), form in zip(server.requests, forms, strict=True):
        assert body["messages"] == HELLO
        assert {name: body[name] for name in form} == form


@every_way
def test_what_nobody_would_check_is_refused_with_its_place_before_a_start(way: str) -> None:
    engine = Engine(model="org/name")
    form = with_part({"type": "integer", "multipleOf": 5})
    with pytest.raises(InvalidInputError, match=r"schema\.properties\.part\.multipleOf: vLLM can't hold an answer"):
        WAYS[way](engine, response_format=form)
    with pytest.raises(InvalidInputError, match=r"schema\.properties\.part\.multipleOf: vLLM can't hold an answer"):
        WAYS[way](engine, structured_outputs={"json": form["json_schema"]["schema"]})
    with pytest.raises(InvalidInputError, match="is not a regular expression"):
        WAYS[way](engine, response_format=with_part({"type": "string", "pattern": "("}))
    with pytest.raises(InvalidInputError, match=r"structured_outputs\.json is not JSON"):
        WAYS[way](engine, structured_outputs={"json": "{"})


def test_other_servers_and_backends_get_what_xgrammar_can_not_hold_and_of_what_is_checked_it_is_left_out(
    server: RemoteServer,
) -> None:
    part = {"type": "integer", "multipleOf": 5}
    engine = Engine(base_url=server.url, max_retries=0)
    engine.chat(HELLO, response_format=with_part(part))
    engine.chat(HELLO, response_format=with_part(part, is_checked=True))
    (_, unchecked), (_, checked) = server.requests
    assert sent_schema(unchecked)["properties"]["part"] == part
    assert sent_schema(checked)["properties"]["part"] == {"type": "integer"}
    assert checked["response_format"]["json_schema"].keys() == {"name", "schema"}
    assert '"multipleOf": 5' in checked["messages"][1]["content"], "the model is told all the same"


def test_arguments_of_strict_tools_get_the_form_that_is_held(server: RemoteServer) -> None:
    def tool(name: str, **more: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}

    engine = Engine(base_url=server.url, max_retries=0, schema_max_items=3)
    engine.chat(HELLO, tools=[tool("a", strict=True), tool("b"), tool("c", strict=False)])
    engine.chat_batch([HELLO], tools=[tool("a", strict=True)])
    for _, body in server.requests:
        strict, *others = [each["function"]["parameters"] for each in body["tools"]]
        assert strict["properties"]["mail"] == HELD
        assert strict["properties"]["tags"]["maxItems"] == 3
        assert others in ([SCHEMA, SCHEMA], [])
        assert body["messages"] == HELLO


def test_what_is_said_is_counted(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, max_retries=0)
    plain = engine.count_tokens(HELLO)
    said = engine.count_tokens(HELLO, response_format=FORM)
    assert said == asyncio.run(engine.acount_tokens(HELLO, response_format=FORM))
    engine.chat(HELLO, response_format=FORM)
    ((_, body),) = server.requests
    words = sum(len(message["content"].split()) for message in body["messages"])
    assert said == words + 2 > plain
    quiet = Engine(base_url=server.url, max_retries=0, show_schema=False)
    assert quiet.count_tokens(HELLO, response_format=FORM) == plain


def test_a_template_with_a_place_for_it_gets_it_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ response_format }}{{ messages }}")
    engine = Engine(model=str(tmp_path))
    request = engine._chat_request(HELLO, engine._params(None, {"response_format": FORM}), None, None)
    body = json.loads(request.body)
    assert body["messages"] == HELLO
    assert body["chat_template_kwargs"]["response_format"]["json_schema"]["name"] == "it"
    request = engine._chat_request(HELLO, engine._params(None, {"structured_outputs": {"json": SCHEMA}}), None, None)
    assert json.loads(request.body)["chat_template_kwargs"]["response_format"]["json_schema"]["schema"] == SCHEMA
