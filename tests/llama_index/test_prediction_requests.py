"""Structured output: what is asked of the server, in each of LlamaIndex's ways and modes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import ChatPromptTemplate, PromptTemplate
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import SelectorPromptTemplate
from pydantic import BaseModel, Field

from llama_index_vllm_local import VLLM
from shared_engine import InvalidInputError, VLLMError
from shared_engine.adapting.structured import JsonSchema
from tests.llama_index.predictions import (
    ANNA,
    JSON,
    MODES,
    PROMPT,
    QUESTION,
    WAYS,
    Person,
    asked,
    every_way,
    in_mode,
    says,
)
from tests.support.remote_server import RemoteServer


@pytest.fixture(autouse=True)
def anna_is_the_answer(server: RemoteServer) -> None:
    says(server, JSON)


@every_way
def test_the_class_is_sent_as_response_format(remote: VLLM, server: RemoteServer, way: str) -> None:
    assert WAYS[way](remote)[-1] == ANNA
    body = asked(server)
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Person", "description": "A person.", "schema": Person.model_json_schema()},
    }
    assert not body.keys() & {"tools", "tool_choice", "structured_outputs"}


@every_way
def test_in_function_mode_the_class_is_a_tool_that_must_be_called(remote: VLLM, server: RemoteServer, way: str) -> None:
    assert WAYS[way](in_mode(remote, "function"), tool_required=False, tool_choice="none")[-1] == ANNA
    body = asked(server)
    assert body["tools"][0]["function"]["parameters"]["properties"] == Person.model_json_schema()["properties"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Person"}}
    assert "response_format" not in body


@every_way
def test_in_llm_mode_the_prompt_says_it_all(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, f"Sure, here you are:\n{JSON}\nAnything else?")
    assert WAYS[way](in_mode(remote, "llm"))[-1] == ANNA
    body = asked(server)
    assert json.dumps(Person.model_json_schema()) in body["messages"][0]["content"]
    assert not body.keys() & {"tools", "response_format"}
    assert PROMPT.output_parser is None


@every_way
def test_other_modes_are_llama_indexes_own(remote: VLLM, way: str) -> None:
    with pytest.raises(ValueError, match="Unsupported pydantic program mode"):
        WAYS[way](in_mode(remote, "guidance"))
    with pytest.raises(ValueError, match="Unsupported pydantic program mode"):
        in_mode(remote, "guidance").as_structured_llm(Person).complete(QUESTION)


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_system_prompt_and_instructions_of_the_prompts_own_parser_are_sent(
    remote: VLLM, server: RemoteServer, way: str, mode: str
) -> None:
    remote.system_prompt = "Be exact."
    chat = ChatPromptTemplate.from_messages([("user", "{fact}"), ("assistant", "Go on."), ("user", "Extract {what}.")])
    text = PromptTemplate("not for models with a chat template")
    prompt = SelectorPromptTemplate(text, [(lambda llm: llm.metadata.is_chat_model, chat)])
    WAYS[way](in_mode(remote, mode), prompt=prompt.partial_format(what="her"))
    messages = asked(server)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be exact.")
    assert messages[-1]["content"].startswith("Extract her.")

    class Shout(PydanticOutputParser[Person]):
        def format(self, query: str) -> str:
            return query.upper()

    server.requests.clear()
    WAYS[way](in_mode(remote, mode), prompt=PromptTemplate("{fact} Extract.", output_parser=Shout(Person)))
    own = asked(server)["messages"][-1]["content"]
    assert (
        own == "ANNA IS 31 YEARS OLD. EXTRACT." if mode != "llm" else own.startswith("Anna is 31 years old. Extract.")
    )


FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"json": {"type": "object"}}},
    {"extra_body": {"response_format": {"type": "json_object"}}},
]


@every_way
@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_a_calls_own_form_and_parameters_win(
    remote: VLLM, server: RemoteServer, way: str, form: dict[str, Any]
) -> None:
    llm = remote.model_copy(update={"max_tokens": 9, "temperature": 0.5, "structured_outputs": {"regex": ".*"}})
    assert WAYS[way](llm, **form, max_tokens=30)[-1] == ANNA
    body = asked(server)
    sent = {name: body[name] for name in ("response_format", "structured_outputs") if name in body}
    assert sent == form.get("extra_body", form)
    assert (body["max_tokens"], body["temperature"]) == (30, 0.5)
    server.requests.clear()
    WAYS[way](llm, max_tokens=None)
    body = asked(server)
    assert "json_schema" in body["response_format"]
    assert not body.keys() & {"structured_outputs", "max_tokens"}


@pytest.mark.parametrize("mode", MODES)
def test_keywords_of_the_caller_stay_as_they_are(remote: VLLM, mode: str) -> None:
    keywords = {"max_tokens": 30, "tool_choice": "auto", "extra_body": {"ignore_eos": False}}
    before = json.dumps(keywords)
    llm = in_mode(remote, mode)
    assert llm.structured_predict(Person, PROMPT, llm_kwargs=keywords, fact="") == ANNA
    assert list(llm.stream_structured_predict(Person, PROMPT, llm_kwargs=keywords, fact=""))[-1] == ANNA
    assert llm.as_structured_llm(Person).complete("", **keywords).raw == ANNA
    assert json.dumps(keywords) == before


class Tags(BaseModel):
    uniqueItems: set[str] = Field(default={"uniqueItems"}, max_length=2)
    by_name: dict[str, list[frozenset[int] | None]] = {}


@every_way
def test_sets_are_asked_for_as_lists_which_vllm_takes(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, '{"uniqueItems": ["b", "a", "b"], "by_name": {"x": [[1, 1], null]}}')
    whole = Tags(uniqueItems={"a", "b"}, by_name={"x": [frozenset([1]), None]})
    assert WAYS[way](remote, Tags)[-1] == whole
    schema = Tags.model_json_schema()
    assert schema["properties"]["uniqueItems"].pop("uniqueItems") is True
    assert schema["properties"]["by_name"]["additionalProperties"]["items"]["anyOf"][0].pop("uniqueItems") is True
    assert asked(server)["response_format"]["json_schema"]["schema"] == schema


def test_only_the_keyword_unique_items_is_left_out_of_a_schema_and_of_a_copy() -> None:
    array = {"type": "array", "uniqueItems": True}
    named: dict[str, Any] = {
        "properties": {"uniqueItems": array, "properties": array},
        "$defs": {"uniqueItems": array},
        "default": {"uniqueItems": True},
        "enum": [{"uniqueItems": True}],
        "items": [array, False],
    }
    before = json.dumps(named)
    sent = JsonSchema("it", named).response_format()["json_schema"]["schema"]
    assert sent == {
        "properties": {"uniqueItems": {"type": "array"}, "properties": {"type": "array"}},
        "$defs": {"uniqueItems": {"type": "array"}},
        "default": {"uniqueItems": True},
        "enum": [{"uniqueItems": True}],
        "items": [{"type": "array"}, False],
    }
    assert json.dumps(named) == before


def test_what_vllm_refuses_is_left_to_who_checks_the_answer() -> None:
    text = {"type": "string", "pattern": "a+", "minLength": 2, "maxLength": 5}
    refused: dict[str, Any] = {
        "type": "object",
        "properties": {
            "multipleOf": {"type": "integer", "multipleOf": 5, "minimum": 0},
            "format": {"type": "string", "format": "path", "minLength": 2},
            "day": {"type": "string", "format": "date", "minLength": 2},
            "text": text,
            "list": {"type": "array", "items": text, "contains": {"const": "a"}, "minContains": 1, "maxContains": 2},
            "both": {"allOf": [{"type": "string"}, text]},
            "one": {"allOf": [{"$ref": "#/$defs/text"}]},
            "map": {"type": "object", "patternProperties": {"^a": text}},
            "maps": {"type": "object", "patternProperties": {"^a": text, "^b": text}, "propertyNames": text},
        },
        "patternProperties": {"^x": text},
        "$defs": {"text": text},
    }
    left = {"type": "string", "pattern": "a+"}
    assert JsonSchema("it", refused, is_checked=True).response_format()["json_schema"]["schema"] == {
        "type": "object",
        "properties": {
            "multipleOf": {"type": "integer", "minimum": 0},
            "format": {"type": "string", "minLength": 2},
            "day": {"type": "string", "format": "date"},
            "text": left,
            "list": {"type": "array", "items": left},
            "both": {},
            "one": {"allOf": [{"$ref": "#/$defs/text"}]},
            "map": {"type": "object", "patternProperties": {"^a": left}},
            "maps": {"type": "object"},
        },
        "$defs": {"text": left},
    }
    unchecked = JsonSchema("it", refused).response_format()["json_schema"]["schema"]
    assert unchecked["properties"].pop("format") == {"type": "string", "minLength": 2}, "by the standard a remark"
    assert unchecked["properties"] == {name: refused["properties"][name] for name in unchecked["properties"]}


class Locked(BaseModel):
    call: Callable[[int], int]


@every_way
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(remote: VLLM, server: RemoteServer, way: str) -> None:
    for output_cls in (dict, Person.model_json_schema(), ANNA):
        with pytest.raises(InvalidInputError, match="must be a pydantic class"):
            WAYS[way](remote, output_cls)
    with pytest.raises(InvalidInputError, match="Locked: it can't be converted to a JSON schema"):
        WAYS[way](remote, Locked)
    with pytest.raises(InvalidInputError, match="pass one of them"):
        WAYS[way](remote, response_format={"type": "json_object"}, structured_outputs={"regex": ".*"})
    without_tools = in_mode(remote.model_copy(update={"is_function_calling_model": False}), "function")
    with pytest.raises(InvalidInputError, match="'default' uses response_format"):
        WAYS[way](without_tools)
    assert server.requests == []


# Older cores write the LLM into every event, and pydantic complains that the string is none of the enum.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@every_way
def test_the_mode_can_be_a_string(remote: VLLM, server: RemoteServer, way: str) -> None:
    remote.pydantic_program_mode = "function"  # type: ignore[assignment]
    assert WAYS[way](remote)[-1] == ANNA
    assert "tools" in asked(server)
    remote.is_function_calling_model = False
    with pytest.raises(InvalidInputError, match="pydantic_program_mode = 'function' needs a tool call"):
        WAYS[way](remote)

    def guess() -> None:
        remote.pydantic_program_mode = "guess"  # type: ignore[assignment]
        WAYS[way](remote)

    with pytest.raises(VLLMError, match=r"pydantic_program_mode = 'guess'.*'default', 'openai', 'llm', 'function'"):
        guess()
