"""Structured output: what is asked of the server, in each of LlamaIndex's ways and modes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from llama_index.core import ChatPromptTemplate, PromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import SelectorPromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field, NaiveDatetime

from llama_index_vllm_local import VLLM
from shared_engine import InvalidInputError, VLLMError
from shared_engine.schemas.patterns import FORMATS
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
from tests.llama_index.ways import alist
from tests.support.remote_server import RemoteServer, running_app


@pytest.fixture(autouse=True)
def anna_is_the_answer(server: RemoteServer) -> None:
    says(server, JSON)


@every_way
def test_the_class_is_sent_as_response_format(remote: VLLM, server: RemoteServer, way: str) -> None:
    assert WAYS[way](remote)[-1] == ANNA
    body = asked(server)
    ((role, content),) = [(message["role"], message["content"]) for message in body["messages"]]
    assert role == "user"
    assert content.startswith(f"{QUESTION}\n\nHere's a JSON schema to follow:\n")
    assert json.dumps(Person.model_json_schema()) in content
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Person", "description": "A person.", "schema": Person.model_json_schema()},
    }
    assert not body.keys() & {"tools", "tool_choice", "structured_outputs"}


async def call_a_tool(llm: VLLM) -> None:
    await llm.apredict_and_call([FunctionTool.from_defaults(str.upper, name="Person")], QUESTION)


ON_A_LOOP: dict[str, Callable[[VLLM], Coroutine[Any, Any, object]]] = {
    "astructured_predict": lambda llm: llm.astructured_predict(Person, PROMPT),
    "astream_structured_predict": lambda llm: alist(llm.astream_structured_predict(Person, PROMPT)),
    "achat": lambda llm: llm.as_structured_llm(Person).achat([ChatMessage(role="user", content=QUESTION)]),
    "apredict_and_call": call_a_tool,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ON_A_LOOP)
async def test_a_server_that_is_slow_to_say_what_it_serves_does_not_hold_up_the_loop(
    server: RemoteServer, way: str, mode: str
) -> None:
    async def models(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)
        return web.json_response({"data": server.models})

    server._models = models  # type: ignore[method-assign,assignment]
    with running_app(server.app()) as url:
        asking = asyncio.ensure_future(ON_A_LOOP[way](in_mode(VLLM(base_url=url, model="served"), mode)))
        longest_s = 0.0
        while not asking.done():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - began)
        assert longest_s < 0.7
        if way != "apredict_and_call":
            asking.result()


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
    words = "Anna is 31 years old. Extract."
    assert own.startswith(words if mode == "llm" else words.upper())


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


class Exact(BaseModel):
    price: Decimal = Field(max_digits=4, decimal_places=2)
    seen: NaiveDatetime
    mail: str = Field(pattern="@")
    step: int = Field(multiple_of=5)
    by_day: dict[date, bool] = {}


@every_way
def test_what_the_server_gets_is_what_it_can_hold_and_what_the_model_is_told_is_the_class(
    remote: VLLM, server: RemoteServer, way: str
) -> None:
    text = '{"price": "1.50", "seen": "2024-05-01T10:00:00", "mail": "a@b", "step": 10, "by_day": {"2024-05-01": true}}'
    says(server, text)
    assert WAYS[way](remote, Exact)[-1] == Exact.model_validate_json(text)
    body = asked(server)
    sent = body["response_format"]["json_schema"]["schema"]["properties"]
    assert sent["mail"]["pattern"] == "^.*@.*$"
    assert sent["seen"]["pattern"] == FORMATS["naive-date-time"]
    assert sent["by_day"]["patternProperties"].keys() == {FORMATS["date"]}
    assert "multipleOf" not in sent["step"]
    assert '"multipleOf": 5' in body["messages"][0]["content"]


@every_way
def test_the_class_can_be_left_unsaid_and_what_has_no_end_bounded(remote: VLLM, server: RemoteServer, way: str) -> None:
    WAYS[way](remote, show_schema=False, schema_max_length=9)
    body = asked(server)
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["name"]["maxLength"] == 9


@every_way
def test_raw_tabs_and_line_ends_in_strings_are_read(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, '{"name": "An\tna\n", "age": 31}')
    assert WAYS[way](remote)[-1] == Person(name="An\tna\n", age=31)


class Odd(BaseModel):
    number: str = Field(json_schema_extra={"pattern": "("})


class Locked(BaseModel):
    call: Callable[[int], int]


@every_way
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(remote: VLLM, server: RemoteServer, way: str) -> None:
    for output_cls in (dict, Person.model_json_schema(), ANNA):
        with pytest.raises(InvalidInputError, match="must be a pydantic class"):
            WAYS[way](remote, output_cls)
    with pytest.raises(
        InvalidInputError, match=r"schema\.properties\.number\.pattern = '\(' is not a regular expression"
    ):
        WAYS[way](remote, Odd)
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
