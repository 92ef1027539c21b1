"""ChatVLLM inside LangChain's agents, on real vLLM: the loop, its streams, tools, and structured answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware, SummarizationMiddleware, ToolErrorMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.tools import ToolException, tool
from pydantic import BaseModel

from langchain_vllm_local import ChatVLLM
from tests.langchain.agent_runs import ask, assert_two_steps, search
from tests.support.agent_tools import SUM, SUM_ANSWER, WEATHER, add, get_weather, multiply


class Person(BaseModel):
    name: str
    age: int


class Product(BaseModel):
    """Multiply two integers and return the result."""

    a: int
    b: int


# The model was trained to call a tool of this name as its second step.
Product.__name__ = "multiply"


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=64)


def react_agent(llm: ChatVLLM, tools: list[Any]) -> Any:
    from langgraph.prebuilt import create_react_agent

    return create_react_agent(llm, tools)


both_agents = pytest.mark.parametrize(
    "make",
    [
        create_agent,
        pytest.param(react_agent, marks=pytest.mark.filterwarnings("ignore:create_react_agent has been moved")),
    ],
)


# ---- the loop, whole and streamed


@both_agents
async def test_an_agent_takes_two_steps(llm: ChatVLLM, make: Callable[..., Any]) -> None:
    agent = make(llm, [add, multiply])
    assert_two_steps((await asyncio.to_thread(agent.invoke, ask(SUM)))["messages"])
    assert_two_steps((await agent.ainvoke(ask(SUM)))["messages"])


async def parts(agent: Any, mode: str, is_async: bool) -> list[Any]:
    if is_async:
        return [part async for part in agent.astream(ask(SUM), stream_mode=mode)]
    return await asyncio.to_thread(lambda: list(agent.stream(ask(SUM), stream_mode=mode)))


either_way = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@either_way
async def test_updates_and_values_of_a_streamed_agent(llm: ChatVLLM, is_async: bool) -> None:
    agent = create_agent(llm, [add, multiply])
    updates = await parts(agent, "updates", is_async)
    assert [next(iter(update)) for update in updates] == ["model", "tools", "model", "tools", "model"]
    values = await parts(agent, "values", is_async)
    assert [len(value["messages"]) for value in values] == [1, 2, 3, 4, 5, 6]
    assert_two_steps(values[-1]["messages"])


@both_agents
@either_way
async def test_messages_of_a_streamed_agent_come_in_pieces_that_add_up(
    llm: ChatVLLM, make: Callable[..., Any], is_async: bool
) -> None:
    streamed = [message for message, _ in await parts(make(llm, [add, multiply]), "messages", is_async)]
    by_id: dict[str, list[Any]] = {}
    for message in streamed:
        by_id.setdefault(message.id, []).append(message)
    model = [pieces for pieces in by_id.values() if isinstance(pieces[0], AIMessage)]
    assert all(isinstance(piece, AIMessageChunk) for pieces in model for piece in pieces)  # none a second time, whole
    assert all(len(pieces) > 3 for pieces in model)
    whole = [reduce(lambda left, right: left + right, pieces) for pieces in model]
    tools = [message for message in streamed if isinstance(message, ToolMessage)]
    question = await make(llm, []).ainvoke(ask(SUM))
    assert_two_steps([question["messages"][0], whole[0], tools[0], whole[1], tools[1], whole[2]])
    assert streamed.index(tools[0]) < streamed.index(model[1][0])


async def test_events_of_an_agent(llm: ChatVLLM) -> None:
    agent = create_agent(llm, [add, multiply])
    events = [event async for event in agent.astream_events(ask(SUM), version="v2")]
    told = [(event["event"], event["name"]) for event in events if event["event"].startswith(("on_chat", "on_tool"))]
    once = [pair for index, pair in enumerate(told) if index == 0 or told[index - 1] != pair]
    model = [(f"on_chat_model_{step}", "ChatVLLM") for step in ("start", "stream", "end")]
    tools = [[(f"on_tool_{step}", name) for step in ("start", "end")] for name in ("add", "multiply")]
    assert once == [*model, *tools[0], *model, *tools[1], *model]
    ends = [event["data"]["output"] for event in events if event["event"] == "on_chat_model_end"]
    assert all(end.usage_metadata["output_tokens"] > 1 for end in ends)
    assert_two_steps(events[-1]["data"]["output"]["messages"])


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
async def test_typed_events_of_an_agent(llm: ChatVLLM) -> None:
    agent = create_agent(llm, [add, multiply])
    run = agent.stream_events(ask(SUM), version="v3")
    texts = [list(message.text) for message in run.messages]
    assert "".join(texts[-1]) == SUM_ANSWER and len(texts[-1]) > 1
    assert_two_steps(run.output["messages"])
    async_run = await agent.astream_events(ask(SUM), version="v3")
    assert_two_steps((await async_run.output())["messages"])


async def test_streaming_can_be_switched_off(llm: ChatVLLM) -> None:
    agent = create_agent(llm.model_copy(update={"streaming": False}), [add, multiply])
    messages = [message async for message, _ in agent.astream(ask(SUM), stream_mode="messages")]
    assert [type(message) for message in messages] == [AIMessage, ToolMessage] * 2 + [AIMessage]


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_that_thinks(tiny_chat: dict[str, Any], stream: bool) -> None:
    agent = create_agent(
        ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=128, enable_thinking=True, streaming=stream), [add, multiply]
    )
    messages = agent.invoke(ask(SUM))["messages"]
    assert_two_steps(messages)
    assert all(m.additional_kwargs["reasoning_content"] for m in messages if isinstance(m, AIMessage))


# ---- tools


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_one_answer_run_together(llm: ChatVLLM, stream: bool) -> None:
    agent = create_agent(llm.model_copy(update={"streaming": stream}), [get_weather])
    messages = agent.invoke(ask("What is the weather in Oslo and in Madrid?"))["messages"]
    assert [call["args"] for call in messages[1].tool_calls] == [{"city": "Oslo"}, {"city": "Madrid"}]
    assert [m.tool_call_id for m in messages[2:4]] == [call["id"] for call in messages[1].tool_calls]
    assert not messages[4].tool_calls and messages[4].text


def failing_tool() -> Any:
    @tool("get_weather")
    def fails(city: str) -> str:
        """Get the weather for a city."""
        raise ToolException("Error: Invalid city.")

    fails.handle_tool_error = True
    return fails


def test_a_tools_own_error_goes_back_to_the_model(llm: ChatVLLM) -> None:
    messages = create_agent(llm, [failing_tool()]).invoke(ask(WEATHER))["messages"]
    assert (messages[2].status, messages[-1].text) == ("error", "The tool failed: Invalid city.")


def test_an_exception_of_a_tool_goes_back_through_middleware_or_to_the_caller(llm: ChatVLLM) -> None:
    def broken(city: str) -> str:
        """Get the weather for a city."""
        raise KeyError(city)

    weather = tool("get_weather")(broken)
    with pytest.raises(KeyError, match="Paris"):
        create_agent(llm, [weather]).invoke(ask(WEATHER))
    told = ToolErrorMiddleware(lambda exc, request: "Error: Invalid city.")
    messages = create_agent(llm, [weather], middleware=[told]).invoke(ask(WEATHER))["messages"]
    assert (messages[2].status, messages[-1].text) == ("error", "The tool failed: Invalid city.")


@pytest.mark.parametrize("max_tokens", [8, 14, 15])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_was_cut_off_is_not_made(llm: ChatVLLM, stream: bool, max_tokens: int) -> None:
    """The arguments that have come may be valid JSON with a little help, and wrong: 3 where 30 was meant."""
    made: list[tuple[int, int]] = []

    def add(a: int, b: int = 0) -> int:
        """Add two integers."""
        made.append((a, b))
        return a + b

    model = llm.model_copy(update={"streaming": stream, "max_tokens": max_tokens})
    messages = create_agent(model, [add, multiply]).invoke(ask(SUM), {"recursion_limit": 4})["messages"]
    assert messages[1].response_metadata["finish_reason"] == "length"
    assert not made


def test_a_streamed_call_that_was_cut_off_is_an_invalid_one(llm: ChatVLLM) -> None:
    chunks = list(llm.bind_tools([add, multiply]).stream(SUM, max_tokens=14))
    whole = reduce(lambda left, right: left + right, chunks)
    assert not whole.tool_calls
    (call,) = whole.invalid_tool_calls
    assert call["name"] == "add" and '"b": 3' in str(call["args"])


# ---- other models beside it


@pytest.mark.parametrize("stream", [False, True])
def test_it_stands_in_for_a_server_that_is_gone(llm: ChatVLLM, stream: bool) -> None:
    gone = ChatVLLM(base_url="http://127.0.0.1:9/v1", model="gone", max_retries=0, streaming=stream)
    agent = create_agent(gone, [add, multiply], middleware=[ModelFallbackMiddleware(llm)])
    assert_two_steps(agent.invoke(ask(SUM))["messages"])


def test_a_long_conversation_is_summarised_at_a_share_of_the_profiles_context(llm: ChatVLLM) -> None:
    shorten = SummarizationMiddleware(model=llm, trigger=("fraction", 0.02), keep=("messages", 2))
    talk = [("user", "Hello"), ("assistant", "Hello! How can I help you today?")] * 6
    question = {"messages": [*talk, ("user", "What is 2 + 3?")]}
    messages = create_agent(llm, [add], middleware=[shorten]).invoke(question)["messages"]
    assert "summary of the conversation" in messages[0].text
    assert len(messages) < len(talk)


# ---- structured answers


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy, None])
@pytest.mark.parametrize("stream", [False, True])
def test_a_structured_answer_without_tools(llm: ChatVLLM, strategy: Any, stream: bool) -> None:
    model = llm.model_copy(update={"streaming": stream})
    agent = create_agent(model, [], response_format=strategy(Person) if strategy else Person)
    result = agent.invoke(ask("Alice Smith is 34 years old."))
    assert result["structured_response"] == Person(name="Alice Smith", age=34)
    # Told nothing, an agent asks the profile, which says that the schema can be sent.
    assert bool(result["messages"][1].tool_calls) is (strategy is ToolStrategy)


@pytest.mark.parametrize("strategy", [ProviderStrategy, None])
@pytest.mark.parametrize("stream", [False, True])
def test_the_model_calls_a_tool_first_and_then_follows_the_schema(llm: ChatVLLM, strategy: Any, stream: bool) -> None:
    model = llm.model_copy(update={"streaming": stream})
    agent = create_agent(model, [search], response_format=strategy(Person) if strategy else Person)
    result = agent.invoke(ask("Search for Alice Smith. Answer in JSON."))
    assert [call["args"] for call in result["messages"][1].tool_calls] == [{"query": "Alice Smith"}]
    assert result["structured_response"] == Person(name="Alice Smith", age=34)


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_among_the_tools_ends_the_loop(llm: ChatVLLM, stream: bool) -> None:
    model = llm.model_copy(update={"streaming": stream})
    result = create_agent(model, [add], response_format=ToolStrategy(Product)).invoke(ask(SUM))
    assert [m.tool_calls[0]["name"] for m in result["messages"] if isinstance(m, AIMessage)] == ["add", "multiply"]
    assert result["structured_response"] == Product(a=42, b=7)
