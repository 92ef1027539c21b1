"""What LlamaIndex's own tests hold of an LLM, held of ours: the same behaviours, in our words and with our assertions.

They are in the repository run-llama/llama_index, not in its packages. Groups here, and the files that they follow:

- endpoints: llms/llama-index-llms-ollama/tests/test_llms_ollama.py, core's tests/llms/test_callbacks.py, test_custom.py
- events: core's tests/llms/test_callbacks.py, test_instrumentation_events.py, tests/callbacks/test_token_budget.py
- models that call no functions: core's tests/llms/test_function_calling.py, test_predict_and_call.py
- thinking in agents: core's tests/agent/workflow/test_thinking_delta.py, test_function_agent_reasoning_only.py

Other files of ours hold the rest of those lists: test_endpoints.py and test_remote.py the endpoints themselves,
test_tools.py the calls of tools, test_agents.py core's tests/agent/workflow/test_single_agent_workflow.py,
test_multi_agent_workflow.py and test_code_act_agent.py, and test_structured.py core's tests/llms/test_structured_llm.py
and tests/program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import AgentStream, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import TextBlock, ThinkingBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatInProgressEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.tools import FunctionTool

from llama_index_vllm_local import VLLM
from tests.llama_index.ways import ENDPOINTS, MESSAGES, QUESTION, STREAMS, alist, text_of
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers

pytestmark = [
    # Workflows list the agent's members, and with them what pydantic deprecated.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),  # ReActAgent
]

SECRET = "sk-very-secret"


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=server.url, api_key=SECRET, max_retries=0)


# ---- endpoints


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_response_lacks_what_its_readers_read(llm: VLLM, endpoint: str) -> None:
    for response in (responses := ENDPOINTS[endpoint](llm)):
        assert (response.delta is not None) is (endpoint in STREAMS)
        assert isinstance(response.raw, dict)
        assert str(response)
    assert text_of(responses[-1]).strip()


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm, messages: llm.chat(messages, tools=[]),
        lambda llm, messages: list(llm.stream_chat(messages, tools=[]))[-1],
        lambda llm, messages: asyncio.run(llm.achat(messages, tools=[])),
        lambda llm, messages: asyncio.run(alist(llm.astream_chat(messages, tools=[])))[-1],
    ],
)
def test_without_tools_there_are_no_calls(llm: VLLM, ask: Callable[..., Any]) -> None:
    system = ChatMessage(role="system", content="You are a helpful assistant.")
    response = ask(llm, [system, *MESSAGES])
    assert response.message.additional_kwargs.get("tool_calls", []) == []
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


@pytest.mark.parametrize("endpoint", ["complete", "stream_complete", "acomplete", "astream_complete"])
async def test_a_prompt_is_given_once_by_place_or_by_name(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    async def text(*args: Any, **kwargs: Any) -> str:
        given = getattr(remote, endpoint)(*args, **kwargs)
        if endpoint == "complete":
            return text_of(given)
        if endpoint == "stream_complete":
            return text_of(list(given)[-1])
        return text_of((await alist(given))[-1] if endpoint in STREAMS else await given)

    answers(server, "Fine.")
    assert await text(QUESTION) == await text(prompt=QUESTION) == "Fine."
    with pytest.raises(TypeError, match="prompt"):
        await text(QUESTION, prompt=QUESTION)
    with pytest.raises(ValueError, match="No prompt"):
        await text()
    assert len(server.requests) == 2


@pytest.mark.parametrize("endpoint", ["stream_chat", "astream_chat"])
def test_a_stream_of_nothing_ends_well(
    remote: VLLM, server: RemoteServer, events: list[BaseEvent], endpoint: str
) -> None:
    server.streams()
    assert [response.delta for response in ENDPOINTS[endpoint](remote)] == [""]
    end = events[-1]
    assert isinstance(end, LLMChatEndEvent)
    assert end.response is not None
    assert end.response.message.content in (None, "")


class Derived(VLLM):
    """As apps derive it, with something of their own."""

    suffix: str = "!"

    @classmethod
    def class_name(cls) -> str:
        return "Derived"


def test_a_derived_class_answers_and_counts_as_its_base_does(
    server: RemoteServer, counter: TokenCountingHandler
) -> None:
    answers(server, "Fine.")
    llm = Derived(base_url=server.url, suffix="?", callback_manager=CallbackManager([counter]))
    assert [text_of(llm.complete("Hi")), text_of(list(llm.stream_chat(MESSAGES))[-1])] == ["Fine.", "Fine."]
    assert [event.total_token_count for event in counter.llm_token_counts] == [12, 14]
    assert Derived.from_dict(llm.to_dict()).suffix == "?"


# ---- events


class Told(BaseCallbackHandler):
    """What each call of the model was told of the model; and, where asked to, an error when a call ends."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__([], [])
        self.models: list[dict[str, Any]] = []
        self._error = error

    def on_event_start(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **_: Any) -> str:
        if event_type is CBEventType.LLM:
            self.models.append(payload[EventPayload.SERIALIZED])
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **_: Any) -> None:
        if event_type is CBEventType.LLM and self._error is not None and EventPayload.EXCEPTION not in (payload or {}):
            raise self._error

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_handlers_are_told_which_model_it_is_but_no_secret(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, "Fine.")
    told = Told()
    remote.callback_manager = CallbackManager([told])
    ENDPOINTS[endpoint](remote)
    (model,) = told.models
    assert model["class_name"] == "VLLM"
    assert SECRET not in str(model)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_error_of_a_handler_reaches_the_caller(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    """As TokenCountingHandler's, when its budget is spent."""
    answers(server, "Fine.")
    remote.callback_manager = CallbackManager([Told(ValueError("the budget is spent"))])
    with pytest.raises(ValueError, match="the budget is spent"):
        ENDPOINTS[endpoint](remote)


def test_what_reads_an_event_leaves_the_response_as_it_is(
    remote: VLLM, server: RemoteServer, events: list[BaseEvent]
) -> None:
    answers(server, "Fine.")
    *_, last = remote.stream_chat(MESSAGES)
    raw = last.raw
    read = [event for event in events if isinstance(event, LLMChatInProgressEvent | LLMChatEndEvent)]
    assert read[-1].model_dump()["response"]["raw"]["usage"] == raw["usage"]
    assert all(event.model_dump_json() for event in read)
    assert last.raw is raw


# ---- models that call no functions


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f"It is sunny in {city}."


ACTION = 'Thought: I need a tool.\nAction: get_weather\nAction Input: {"city": "Paris"}\n'


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["predict_and_call", "apredict_and_call"])
def test_a_model_that_calls_no_functions_is_asked_in_words(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, predict: str
) -> None:
    # LlamaIndex makes its default memory even where it is given another, and never closes its SQLite connection.
    monkeypatch.setattr(Memory, "from_defaults", ChatMemoryBuffer.from_defaults)
    answers(server, ACTION)
    llm = VLLM(base_url=server.url, is_function_calling_model=False)
    answer = getattr(llm, predict)(
        [FunctionTool.from_defaults(get_weather)],
        "How is Paris?",
        react_chat_formatter=ReActChatFormatter(),
        output_parser=ReActOutputParser(),
    )
    answer = asyncio.run(answer) if predict.startswith("a") else answer
    assert answer.response == "It is sunny in Paris."
    ((_, body),) = server.requests
    assert "tools" not in body
    assert "get_weather" in body["messages"][0]["content"]


# ---- thinking in agents

THOUGHT, SAID = "They want a greeting, so I greet.", "Hello there, friend!"


async def run(code: str) -> str:
    return f"ran {code}"


AGENTS: dict[str, tuple[Callable[..., Any], str]] = {
    "function": (FunctionAgent, SAID),
    "react": (ReActAgent, f"Thought: I can answer.\nAnswer: {SAID}"),
    "codeact": (lambda **how: CodeActAgent(code_execute_fn=run, **how), SAID),
}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("kind", AGENTS)
async def test_an_agent_streams_thoughts_apart_from_its_answer(
    remote: VLLM, server: RemoteServer, kind: str, thinks: bool, streaming: bool
) -> None:
    make, said = AGENTS[kind]
    answers(server, {"content": said, **({"reasoning": THOUGHT} if thinks else {})})
    handler = make(llm=remote, streaming=streaming).run(user_msg="Hi", memory=ChatMemoryBuffer.from_defaults())
    pieces = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    answer = (await handler).response
    assert answer.content == SAID
    if streaming:
        thoughts = [piece.thinking_delta for piece in pieces]
        assert "".join(thought or "" for thought in thoughts) == (THOUGHT if thinks else "")
        assert {thought for thought in thoughts if not thought} == {None}
        assert "".join(piece.delta for piece in pieces) == said
    else:
        assert not any(piece.thinking_delta for piece in pieces)
    if kind == "function":  # the others keep the text only
        expected = [ThinkingBlock(content=THOUGHT), TextBlock(text=SAID)] if thinks else [TextBlock(text=SAID)]
        assert answer.blocks == expected
