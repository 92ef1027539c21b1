"""Every call of the model is one event, with what was asked, and what was answered or went wrong, and is counted once:
as vLLM counts it, to the token. Also within agents, structured output, query and chat engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, Settings, SummaryIndex
from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ReActAgent
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
    LLMPredictEndEvent,
    LLMPredictStartEvent,
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.instrumentation.events.span import SpanDropEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from llama_index_vllm_local import VLLM
from shared_engine import InvalidInputError, RequestRejectedError, ServerConnectionError
from tests.llama_index.ways import ENDPOINTS, MESSAGES, QUESTION, STREAMS
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers
from tests.support.waiting import wait_until

pytestmark = [
    # Workflows list the agent's members, and with them what pydantic deprecated.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),  # ReActAgent
]

SETTLE_S = 15.0
STARTS = (LLMChatStartEvent, LLMCompletionStartEvent)
PIECES = (LLMChatInProgressEvent, LLMCompletionInProgressEvent)
ENDS = (LLMChatEndEvent, LLMCompletionEndEvent)


class Trace(BaseCallbackHandler):
    """What a callback manager tells, in order."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[tuple[CBEventType, str, str]] = []
        self.ends: list[tuple[CBEventType, str, dict[Any, Any]]] = []
        self.traces: list[str | None] = []

    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", parent_id: str = "", **_: Any
    ) -> str:
        self.starts.append((event_type, event_id, parent_id))
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **_: Any) -> None:
        self.ends.append((event_type, event_id, payload or {}))

    def start_trace(self, trace_id: str | None = None) -> None:
        self.traces.append(trace_id)

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        assert self.traces.pop() == trace_id

    def of_the_llm(self) -> list[dict[Any, Any]]:
        """How each call of the model ended, one after the other has begun."""
        begun = [event_id for kind, event_id, _ in self.starts if kind is CBEventType.LLM]
        ended = [event_id for kind, event_id, _ in self.ends if kind is CBEventType.LLM]
        assert begun == ended
        return [payload for kind, _, payload in self.ends if kind is CBEventType.LLM]


@pytest.fixture
def trace() -> Trace:
    return Trace()


@pytest.fixture
def remote(server: RemoteServer, trace: Trace, counter: TokenCountingHandler, monkeypatch: pytest.MonkeyPatch) -> VLLM:
    """Query engines give an llm the callback manager of Settings, in place of its own: here they are one."""
    manager = CallbackManager([trace, counter])
    monkeypatch.setattr(Settings, "callback_manager", manager)
    return VLLM(base_url=server.url, max_retries=0, callback_manager=manager)


def those(kinds: Any, events: list[BaseEvent]) -> list[Any]:
    return [event for event in events if isinstance(event, kinds)]


# ---- one call, one event


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_call_is_one_event_with_what_was_asked_and_answered(
    remote: VLLM, server: RemoteServer, trace: Trace, events: list[BaseEvent], endpoint: str
) -> None:
    answers(server, "It is a long answer.")
    responses = ENDPOINTS[endpoint](remote, max_tokens=9)
    (payload,) = trace.of_the_llm()
    (start,), (end,) = those(STARTS, events), those(ENDS, events)
    if endpoint.endswith("complete"):
        assert (payload[EventPayload.PROMPT], payload[EventPayload.COMPLETION]) == (QUESTION, responses[-1])
        assert start.prompt == end.prompt == QUESTION
    else:
        assert (payload[EventPayload.MESSAGES], payload[EventPayload.RESPONSE]) == (MESSAGES, responses[-1])
        assert start.messages == end.messages == MESSAGES
    assert start.additional_kwargs["max_tokens"] == 9
    assert end.response == responses[-1]
    pieces = [event.response for event in those(PIECES, events)]
    assert pieces == (responses if endpoint in STREAMS else [])
    assert len({event.span_id for event in those((*STARTS, *PIECES, *ENDS), events)}) == 1
    assert trace.traces == []


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_streams_counts_are_in_its_last_response_only(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    answers(server, {"reasoning": "It is a thought.", "content": "It is an answer."})
    *pieces, last = ENDPOINTS[endpoint](remote)
    assert len(pieces) > 4
    assert not any("usage" in piece.raw or "total_tokens" in piece.additional_kwargs for piece in pieces)
    assert last.raw["usage"] == last.additional_kwargs == {
        "prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12,
    }  # fmt: skip
    assert last.raw["choices"][0]["finish_reason"] == "stop"
    assert (last.raw["id"], last.raw["model"]) == ("chatcmpl-1", "served")


class Spans(SimpleSpanHandler):
    """The names of the spans that were opened, and of those that were closed or dropped."""

    opened: list[str] = Field(default_factory=list)
    closed: list[str] = Field(default_factory=list)

    def new_span(self, id_: str, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        self.opened.append(id_.rsplit("-", 5)[0])
        return super().new_span(id_, *args, **kwargs)

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        self.closed.append(id_.rsplit("-", 5)[0])
        return super().prepare_to_exit_span(id_, *args, **kwargs)


@pytest.fixture
def spans() -> Iterator[Spans]:
    root, handler = get_dispatcher(), Spans()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_call_is_one_span(remote: VLLM, server: RemoteServer, spans: Spans, endpoint: str) -> None:
    answers(server, "Paris")
    ENDPOINTS[endpoint](remote)
    assert spans.opened == spans.closed == [f"VLLM.{endpoint}"]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_event_of_a_call_belongs_to_the_step_that_made_it(
    remote: VLLM, server: RemoteServer, trace: Trace, is_async: bool
) -> None:
    """Of whole answers: LlamaIndex makes a query's streamed call when its text is read, after all steps have ended."""
    answers(server, "Paris")
    engine = SummaryIndex.from_documents([Document(text="Paris.")]).as_query_engine(llm=remote)
    asyncio.run(engine.aquery("Where?")) if is_async else engine.query("Where?")
    assert len(trace.of_the_llm()) == 1
    kinds = {event_id: kind for kind, event_id, _ in trace.starts}
    parents = {kind: kinds.get(parent_id) for kind, _, parent_id in trace.starts}
    assert parents[CBEventType.LLM] is CBEventType.SYNTHESIZE
    assert parents[CBEventType.SYNTHESIZE] is CBEventType.QUERY
    assert trace.traces == []


# ---- a call that fails


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_error_is_told_once_and_raised_as_it_is(
    remote: VLLM, server: RemoteServer, trace: Trace, events: list[BaseEvent], endpoint: str
) -> None:
    server.fails(400, message="the reason")
    with pytest.raises(RequestRejectedError) as raised:
        ENDPOINTS[endpoint](remote)
    assert trace.of_the_llm() == [{EventPayload.EXCEPTION: raised.value}]
    assert those(ENDS, events) == []
    if endpoint in STREAMS:
        assert [event.exception for event in those(ExceptionEvent, events)] == [raised.value]
    else:
        assert [event.err_str for event in those(SpanDropEvent, events)] == [str(raised.value)]
        assert [kind for kind, _, _ in trace.starts].count(CBEventType.EXCEPTION) == 1
    assert trace.traces == []


@pytest.mark.parametrize("endpoint", STREAMS)
def test_an_error_within_a_stream_comes_after_its_pieces_and_is_told_once(
    remote: VLLM, server: RemoteServer, trace: Trace, events: list[BaseEvent], endpoint: str
) -> None:
    server.streams("one", "two", then="cut")
    with pytest.raises(ServerConnectionError) as raised:
        ENDPOINTS[endpoint](remote)
    assert [event.response.delta for event in those(PIECES, events)] == ["one", "two"]
    assert trace.of_the_llm() == [{EventPayload.EXCEPTION: raised.value}]
    assert [event.exception for event in those(ExceptionEvent, events)] == [raised.value]
    assert those(ENDS, events) == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_refused_input_is_told_as_other_errors_are_and_sends_nothing(
    remote: VLLM, server: RemoteServer, trace: Trace, counter: TokenCountingHandler, endpoint: str
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        ENDPOINTS[endpoint](remote, top_p=2)
    assert trace.of_the_llm() == [{EventPayload.EXCEPTION: raised.value}]
    assert server.requests == []
    assert counter.total_llm_token_count == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_is_left_early_has_no_counts(
    remote: VLLM, server: RemoteServer, trace: Trace, counter: TokenCountingHandler, is_async: bool
) -> None:
    """vLLM tells them with the end, which never came. LlamaIndex lists the call, with zeros."""
    server.streams("one", "two", then="hang")

    async def leave() -> None:
        stream = await remote.astream_chat(MESSAGES)
        await anext(stream)
        await stream.aclose()

    if is_async:
        asyncio.run(leave())
    else:
        for response in remote.stream_chat(MESSAGES):
            assert "usage" not in response.raw
            break
    (payload,) = trace.of_the_llm()
    assert isinstance(payload[EventPayload.EXCEPTION], GeneratorExit)
    assert [(event.prompt_token_count, event.completion_token_count) for event in counter.llm_token_counts] == [(0, 0)]


# ---- counted as vLLM counts, whoever calls


class Place(BaseModel):
    """A place."""

    city: str


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f"It is sunny in {city}."


WEATHER = "What is the weather in Paris?"
CAPITAL = PromptTemplate("What is the capital of {country}?")
EXTRACT = PromptTemplate("Extract the city: {text}")
DOCUMENTS = [
    Document(text="The Alder bridge was opened in 1932. It crosses the river Lenne."),
    Document(text="The library of Alder has 4500 books and a reading room."),
]


def short_memory() -> ChatMemoryBuffer:
    """LlamaIndex's default memory leaves an SQLite connection for the garbage collector to complain about."""
    return ChatMemoryBuffer.from_defaults()


async def tokens(stream: Any) -> list[Any]:
    return [token async for token in await stream]


def structured(way: str) -> Callable[[VLLM], Any]:
    asked: Any = {"output_cls": Place, "prompt": EXTRACT, "text": "I live in Paris."}

    def call(llm: VLLM) -> Any:
        llm.repetition_penalty = 1.5  # helps so small a model to end a text
        result = getattr(llm, way)(**asked)
        if way == "astream_structured_predict":
            return asyncio.run(tokens(result))
        return asyncio.run(result) if way == "astructured_predict" else list(result)

    return call


async def run_agent(agent: Any, llm: VLLM) -> list[Any]:
    handler = agent(tools=[get_weather], llm=llm).run(user_msg=WEATHER, memory=short_memory())
    seen = [event async for event in handler.stream_events()]
    await handler
    return seen


def query(llm: VLLM, **how: Any) -> str:
    return str(SummaryIndex.from_documents(DOCUMENTS).as_query_engine(llm=llm, **how).query("What is in Alder?"))


def chat(llm: VLLM, way: str, kind: Any = SimpleChatEngine, **how: Any) -> None:
    engine = kind.from_defaults(llm=llm, memory=short_memory(), **how)

    async def ask() -> None:
        answer = await getattr(engine, way)("Hello")
        if way == "astream_chat":
            assert [token async for token in answer.async_response_gen()]

    if way.startswith("a"):
        asyncio.run(ask())
    elif way == "stream_chat":
        assert list(engine.stream_chat("Hello").response_gen)
    else:
        engine.chat("Hello")


def retriever() -> Any:
    return SummaryIndex.from_documents(DOCUMENTS[:1]).as_retriever()


# Each with the number of times that it calls the model.
CALLERS: dict[str, tuple[int, Callable[[VLLM], Any]]] = {
    "predict": (1, lambda llm: llm.predict(CAPITAL, country="France")),
    "apredict": (1, lambda llm: asyncio.run(llm.apredict(CAPITAL, country="France"))),
    "stream": (1, lambda llm: list(llm.stream(CAPITAL, country="France"))),
    "astream": (1, lambda llm: asyncio.run(tokens(llm.astream(CAPITAL, country="France")))),
    **{
        way: (1, structured(way))
        for way in (
            "structured_predict", "astructured_predict", "stream_structured_predict", "astream_structured_predict",
        )
    },
    "predict_and_call": (1, lambda llm: llm.predict_and_call([FunctionTool.from_defaults(get_weather)], WEATHER)),
    "refine": (2, lambda llm: query(llm, response_mode="refine")),
    "tree_summarize": (1, lambda llm: query(llm, response_mode="tree_summarize", use_async=True)),
    "accumulate": (2, lambda llm: query(llm, response_mode="accumulate", use_async=True)),
    "streamed query": (1, lambda llm: query(llm, streaming=True)),
    "chat engine": (1, lambda llm: chat(llm, "chat")),
    "achat engine": (1, lambda llm: chat(llm, "achat")),
    "stream_chat engine": (1, lambda llm: chat(llm, "stream_chat")),
    "astream_chat engine": (1, lambda llm: chat(llm, "astream_chat")),
    "context chat engine": (1, lambda llm: chat(llm, "chat", ContextChatEngine, retriever=retriever())),
}  # fmt: skip


@pytest.fixture
def counted_llm(llm: VLLM, monkeypatch: pytest.MonkeyPatch) -> VLLM:
    monkeypatch.setattr(Settings, "callback_manager", llm.callback_manager)
    llm.warmup()
    wait_until(lambda: llm.engine.metrics()["num_requests_running"] == 0, SETTLE_S, "earlier requests to end")
    return llm


def engines_own(llm: VLLM) -> tuple[float, float, float]:
    """Requests that vLLM has answered, their prompts' tokens and their answers'."""
    stats = llm.engine.metrics()
    names = ("request_success", "prompt_tokens", "generation_tokens")
    requests, prompt, answer = (stats.get(name, 0.0) for name in names)
    return requests, prompt, answer


def assert_counted(
    llm: VLLM, counter: TokenCountingHandler, before: tuple[float, float, float], events: list[BaseEvent]
) -> int:
    """Hold that LlamaIndex's counts are vLLM's; return how many calls there were."""

    def same() -> bool:
        now = (len(counter.llm_token_counts), counter.prompt_llm_token_count, counter.completion_llm_token_count)
        return tuple(a + b for a, b in zip(before, now, strict=True)) == engines_own(llm)

    wait_until(same, SETTLE_S, "vLLM's own counters to say the same")
    ends = those(ENDS, events)
    assert len(those(STARTS, events)) == len(ends) == len(counter.llm_token_counts)
    told = sorted(event.response.raw["usage"]["total_tokens"] for event in ends)
    assert told == sorted(event.total_token_count for event in counter.llm_token_counts)
    return len(ends)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_counts_of_a_call_are_vllms_own(
    counted_llm: VLLM, counter: TokenCountingHandler, events: list[BaseEvent], endpoint: str
) -> None:
    before = engines_own(counted_llm)
    last = ENDPOINTS[endpoint](counted_llm, max_tokens=6, extra_body={"ignore_eos": True})[-1]
    (event,) = counter.llm_token_counts
    assert event.completion_token_count == 6
    assert event.prompt_token_count == counted_llm.engine.count_tokens([{"role": "user", "content": QUESTION}])
    assert last.additional_kwargs["total_tokens"] == counter.total_llm_token_count
    assert assert_counted(counted_llm, counter, before, events) == 1


@pytest.mark.parametrize("caller", CALLERS)
def test_every_call_that_llama_index_makes_is_counted_once_and_as_vllm_counts_it(
    counted_llm: VLLM, counter: TokenCountingHandler, events: list[BaseEvent], caller: str
) -> None:
    calls, call = CALLERS[caller]
    before = engines_own(counted_llm)
    call(counted_llm)
    assert assert_counted(counted_llm, counter, before, events) == calls


@pytest.mark.parametrize(("agent", "at_least"), [(FunctionAgent, 2), (ReActAgent, 1)])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agents_calls_are_counted_and_its_events_hold_the_counts(
    counted_llm: VLLM,
    counter: TokenCountingHandler,
    events: list[BaseEvent],
    agent: Any,
    at_least: int,
    streaming: bool,
) -> None:
    before = await asyncio.to_thread(engines_own, counted_llm)
    seen = await run_agent(lambda **how: agent(streaming=streaming, **how), counted_llm)
    calls = await asyncio.to_thread(assert_counted, counted_llm, counter, before, events)
    assert calls >= at_least
    outputs = [event.raw for event in seen if isinstance(event, AgentOutput)]
    assert len(outputs) == calls
    assert all(raw["choices"][0]["finish_reason"] for raw in outputs)
    # Whoever adds up what an agent streams gets the sum, since a stream tells its counts once.
    streamed = [event.raw["usage"] for event in seen if isinstance(event, AgentStream) and "usage" in event.raw]
    for usages in (streamed, [raw["usage"] for raw in outputs]) if streaming else ([raw["usage"] for raw in outputs],):
        assert sum(usage["total_tokens"] for usage in usages) == counter.total_llm_token_count


def test_predictions_have_their_own_events_around_the_call(counted_llm: VLLM, events: list[BaseEvent]) -> None:
    counted_llm.predict(CAPITAL, country="France")
    order = [LLMPredictStartEvent, LLMChatStartEvent, LLMChatEndEvent, LLMPredictEndEvent]
    assert [type(event) for event in events if type(event) in order] == order
    events.clear()
    structured("structured_predict")(counted_llm)
    order = [LLMStructuredPredictStartEvent, LLMChatStartEvent, LLMChatEndEvent, LLMStructuredPredictEndEvent]
    assert [type(event) for event in events if type(event) in order] == order
