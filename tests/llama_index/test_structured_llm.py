"""as_structured_llm, and what LlamaIndex builds on an LLM whose answers are objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from pydantic import BaseModel, Field, SecretStr

from llama_index_vllm_local import VLLM
from shared_engine import LengthFinishReasonError
from tests.llama_index.listeners import RecordSpans
from tests.llama_index.predictions import (
    ANNA,
    JSON,
    MODES,
    QUESTION,
    WAYS,
    Half,
    Person,
    asked,
    every_way,
    in_mode,
    says,
)
from tests.llama_index.ways import ENDPOINTS, text_of
from tests.support.remote_server import RemoteServer


@pytest.fixture(autouse=True)
def anna_is_the_answer(server: RemoteServer) -> None:
    says(server, JSON)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_structured_llm_has_all_endpoints_and_keeps_the_usage(
    remote: VLLM, counter: TokenCountingHandler, endpoint: str, mode: str
) -> None:
    llm = in_mode(remote, mode).as_structured_llm(Person)
    assert isinstance(llm, StructuredLLM)
    assert llm.class_name() == "structured_llm"
    *before, last = ENDPOINTS[endpoint](llm, max_tokens=30)
    assert (last.raw, text_of(last)) == (ANNA, JSON)
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert {name: last.additional_kwargs[name] for name in usage} == usage
    assert not any("total_tokens" in response.additional_kwargs for response in before)
    assert counter.total_llm_token_count == 12
    if "stream" in endpoint:
        assert "".join(response.delta or "" for response in [*before, last]) == JSON
        assert "Anna" in [response.raw.name for response in before]
    else:
        assert last.delta is None


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_structured_llm_says_that_an_answer_was_cut_off(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    says(server, '{"a": "An', "length")
    with pytest.raises(LengthFinishReasonError):
        ENDPOINTS[endpoint](remote.as_structured_llm(Half))


# Who knows the handler: LlamaIndex's settings, set before the LLM is made or after; the LLM; or what is made of it.
KNOWN = ["settings", "settings later", "llm", "structured llm", "both"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("known", KNOWN)
def test_a_structured_llms_call_is_told_once_with_vllms_own_counts(
    server: RemoteServer,
    counter: TokenCountingHandler,
    events: list[BaseEvent],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    known: str,
) -> None:
    manager = CallbackManager([counter])
    if known == "settings":
        monkeypatch.setattr(Settings, "callback_manager", manager)
    llm = VLLM(base_url=server.url, max_retries=0)
    if known in ("llm", "both"):
        llm.callback_manager = manager
    if known == "settings later":
        monkeypatch.setattr(Settings, "callback_manager", manager)
    structured = llm.as_structured_llm(Person)
    if known in ("structured llm", "both"):
        structured.callback_manager = CallbackManager([counter])
    before = list(llm.callback_manager.handlers)
    ENDPOINTS[endpoint](structured)
    assert [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts] == [(5, 7)]
    ends = [event for event in events if event.class_name() in ("LLMChatEndEvent", "LLMCompletionEndEvent")]
    assert [end.response.raw["usage"]["total_tokens"] for end in ends] == [12]
    assert llm.callback_manager.handlers == before


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_handlers_of_the_llm_and_of_the_structured_llm_are_all_told(
    remote: VLLM, counter: TokenCountingHandler, endpoint: str
) -> None:
    own = TokenCountingHandler(tokenizer=str.split)
    ENDPOINTS[endpoint](remote.as_structured_llm(Person, callback_manager=CallbackManager([own])))
    for each in (own, counter):
        assert [count.total_token_count for count in each.llm_token_counts] == [12]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_spans_of_a_structured_llm_show_the_callers_keywords_alone(
    remote: VLLM, spans: RecordSpans, endpoint: str
) -> None:
    ENDPOINTS[endpoint](remote.as_structured_llm(Person), max_tokens=30)
    assert any(name.startswith("StructuredVLLM.") for name in spans.names())
    asked = [each["llm_kwargs"] for each in spans.arguments if "llm_kwargs" in each]
    assert asked == [{"max_tokens": 30}]


class Veiled(BaseModel):
    """What it writes by itself it could not read."""

    size: int = Field(alias="the size")
    seed: int = Field(exclude=True)
    key: SecretStr


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```"])
def test_a_structured_llms_text_can_be_read_again(
    remote: VLLM, server: RemoteServer, endpoint: str, mode: str, fence: str
) -> None:
    text = '{"the size": 3, "seed": 7, "key": "k"}'
    says(server, text if mode == "function" else fence.format(text))
    *_, last = ENDPOINTS[endpoint](in_mode(remote, mode).as_structured_llm(Veiled))
    assert last.raw == Veiled.model_validate_json(text) == Veiled.model_validate_json(text_of(last))


@every_way
def test_a_structured_llm_predicts_other_classes_as_its_llm_does(
    remote: VLLM, server: RemoteServer, counter: TokenCountingHandler, way: str
) -> None:
    structured = remote.as_structured_llm(Half)
    assert WAYS[way](structured)[-1] == ANNA
    assert asked(server)["response_format"]["json_schema"]["name"] == "Person"
    assert [count.total_token_count for count in counter.llm_token_counts] == [12]
    assert structured.as_structured_llm(Person).complete(QUESTION).raw == ANNA
    assert len(counter.llm_token_counts) == 2


# Workflows list the agent's members, and with them what pydantic deprecated.
deprecated = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")


@deprecated
async def test_a_structured_llm_is_none_for_agents_that_call_tools(remote: VLLM, server: RemoteServer) -> None:
    structured = remote.as_structured_llm(Person)
    tools = structured.metadata.is_function_calling_model
    assert (tools, structured.metadata.model_copy(update={"is_function_calling_model": True})) == (
        False,
        remote.metadata,
    )
    agent = FunctionAgent(llm=structured)
    with pytest.raises(ValueError, match="LLM must be a FunctionCallingLLM"):
        await agent.run(QUESTION, memory=ChatMemoryBuffer.from_defaults(llm=structured))
    assert server.requests == []


def test_braces_in_messages_are_no_variables(remote: VLLM, server: RemoteServer) -> None:
    remote.as_structured_llm(Person).complete('{fact} {{"a": 1}} {"b": {c}}')
    assert asked(server)["messages"][0]["content"].startswith('{fact} {{"a": 1}} {"b": {c}}\n\nHere\'s a JSON schema')


# ---- what LlamaIndex builds on it


@deprecated
async def test_an_agents_last_word_is_an_instance(remote: VLLM, server: RemoteServer) -> None:
    agent = FunctionAgent(llm=remote, output_cls=Person)
    result = await agent.run(QUESTION, memory=ChatMemoryBuffer.from_defaults(llm=remote))
    assert result.get_pydantic_model(Person) == ANNA
    assert "response_format" in server.requests[-1][1]


class Aliased(BaseModel):
    size: int = Field(alias="the size")


@deprecated
async def test_an_agents_last_word_has_the_names_that_the_class_reads(remote: VLLM, server: RemoteServer) -> None:
    says(server, '{"the size": 3}')
    result = await FunctionAgent(llm=remote, output_cls=Aliased).run(QUESTION, memory=ChatMemoryBuffer.from_defaults())
    assert result.get_pydantic_model(Aliased) == Aliased.model_validate({"the size": 3})


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("response_mode", ["compact", "refine", "tree_summarize"])
def test_a_query_engine_reads_a_structured_llms_text(
    remote: VLLM, server: RemoteServer, response_mode: str, is_async: bool
) -> None:
    says(server, '{"the size": 3}')
    index = SummaryIndex.from_documents([Document(text="It is 3 long.")])
    engine = index.as_query_engine(llm=remote.as_structured_llm(Aliased), response_mode=response_mode)
    answer = asyncio.run(engine.aquery("How long?")) if is_async else engine.query("How long?")
    assert answer.response == Aliased.model_validate({"the size": 3})


def ask_by_structured_llm(llm: VLLM) -> None:
    engine = SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine(llm=llm.as_structured_llm(Person))
    engine.query(QUESTION)


def ask_settings_llm(llm: VLLM) -> None:
    Settings.llm = llm.as_structured_llm(Person)
    SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine().query(QUESTION)


def ask_by_class(llm: VLLM) -> None:
    SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine(llm=llm, output_cls=Person).query(QUESTION)


def ask_agent(llm: VLLM) -> None:
    async def run() -> None:
        await FunctionAgent(llm=llm, output_cls=Person).run(QUESTION, memory=ChatMemoryBuffer.from_defaults())

    asyncio.run(run())


@deprecated
@pytest.mark.parametrize("ask", [ask_by_structured_llm, ask_settings_llm, ask_by_class, ask_agent])
def test_what_is_built_on_it_is_counted_as_it_is_asked(
    server: RemoteServer, counter: TokenCountingHandler, monkeypatch: pytest.MonkeyPatch, ask: Callable[[VLLM], None]
) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "callback_manager", CallbackManager([counter]))
    ask(VLLM(base_url=server.url, max_retries=0))
    told = [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts]
    assert told == [(5, 7)] * len(server.requests)
    assert server.requests


def test_llama_indexes_own_programs_run(remote: VLLM, server: RemoteServer) -> None:
    text = LLMTextCompletionProgram.from_defaults(PydanticOutputParser(Person), prompt_template_str="{x}", llm=remote)
    assert text(x="Anna") == asyncio.run(text.acall(x="Anna")) == ANNA
    name = {"name": "Person"}
    call = {"id": "1", "type": "function", "function": {**name, "arguments": JSON}}

    async def calls(request: web.Request) -> web.StreamResponse:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return web.json_response(
            {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        )

    server.handler = calls
    function = FunctionCallingProgram.from_defaults(Person, prompt_template_str="{x}", llm=remote)
    assert function(x="Anna") == asyncio.run(function.acall(x="Anna")) == ANNA
    assert server.requests[-1][1]["tool_choice"] == "required"
