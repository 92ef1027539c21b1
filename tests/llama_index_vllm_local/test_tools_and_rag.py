"""Tools, agents and query engines on real vLLM: LlamaIndex's own parts around our class."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.agent.workflow.workflow_events import AgentStream, ToolCallResult
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool

from llama_index_vllm_local import VLLM

pytestmark = pytest.mark.engine

WEATHER = "What is the weather in Paris?"


def plain_memory() -> ChatMemoryBuffer:
    """LlamaIndex's default memory leaves an SQLite connection for the garbage collector to complain about."""
    return ChatMemoryBuffer.from_defaults()


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return f"It is sunny in {city}."


@pytest.fixture
def weather_tool() -> FunctionTool:
    return FunctionTool.from_defaults(fn=get_weather)


def assert_asks_for_paris(llm: VLLM, response: Any) -> None:
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    assert call.tool_id
    assert len(response.message.additional_kwargs["tool_calls"]) == 1


@pytest.mark.parametrize("choice", [{"tool_required": True}, {"tool_choice": "get_weather"}, {}])
def test_the_model_calls_a_tool(llm: VLLM, weather_tool: FunctionTool, choice: dict[str, Any]) -> None:
    assert_asks_for_paris(llm, llm.chat_with_tools([weather_tool], WEATHER, **choice))


@pytest.mark.parametrize("choice", [{"tool_required": True}, {}])
async def test_the_model_calls_a_tool_in_every_way_of_asking(
    llm: VLLM, weather_tool: FunctionTool, choice: dict[str, Any]
) -> None:
    assert_asks_for_paris(llm, await llm.achat_with_tools([weather_tool], WEATHER, **choice))
    *_, last = llm.stream_chat_with_tools([weather_tool], WEATHER, **choice)
    assert_asks_for_paris(llm, last)
    stream = await llm.astream_chat_with_tools([weather_tool], WEATHER, **choice)
    pieces = [piece async for piece in stream]
    assert_asks_for_paris(llm, pieces[-1])
    assert pieces[-1].raw["usage"]["total_tokens"] > 0


def test_the_answer_uses_what_the_tool_returned(llm: VLLM, weather_tool: FunctionTool) -> None:
    asked = [ChatMessage(role="user", content=WEATHER)]
    called = llm.chat_with_tools([weather_tool], chat_history=asked)
    (call,) = llm.get_tool_calls_from_response(called)
    told = ChatMessage(
        role="tool", content=get_weather(**call.tool_kwargs), additional_kwargs={"tool_call_id": call.tool_id}
    )
    answer = llm.chat_with_tools([weather_tool], chat_history=[*asked, called.message, told])
    assert "sunny" in (answer.message.content or "")


def test_predict_and_call_returns_what_the_tool_said(llm: VLLM, weather_tool: FunctionTool) -> None:
    assert llm.predict_and_call([weather_tool], WEATHER).response == "It is sunny in Paris."


# Workflows list the agent's members, and with them what pydantic deprecated.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_calls_its_tool_and_answers(
    llm: VLLM, weather_tool: FunctionTool, streaming: bool
) -> None:
    agent = FunctionAgent(tools=[weather_tool], llm=llm, streaming=streaming)
    handler = agent.run(user_msg=WEATHER, memory=plain_memory())
    results, deltas = [], []
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            results.append(event.tool_output.content)
        elif isinstance(event, AgentStream):
            deltas.append(event.delta)
    answer = await handler
    assert results == ["It is sunny in Paris."]
    assert "sunny" in str(answer)
    assert bool([delta for delta in deltas if delta]) is streaming


@pytest.fixture
def count_everything(llm: VLLM, monkeypatch: pytest.MonkeyPatch) -> VLLM:
    """The llm; query engines give it the callback manager of Settings, in place of its own."""
    monkeypatch.setattr(Settings, "callback_manager", llm.callback_manager)
    return llm


DOCUMENTS = [
    Document(text="The Alder bridge was opened in 1932. It crosses the river Lenne."),
    Document(text="The library of Alder has 4500 books and a reading room."),
]


def test_a_query_engine_answers_from_its_documents(count_everything: VLLM, counter: TokenCountingHandler) -> None:
    answer = (
        SummaryIndex.from_documents(DOCUMENTS[:1])
        .as_query_engine(llm=count_everything)
        .query("In which year was the Alder bridge opened?")
    )
    assert "1932" in str(answer)
    (event,) = counter.llm_token_counts
    assert event.prompt_token_count > 20


async def test_retrieved_text_reaches_the_model_and_the_answer_streams(llm: VLLM) -> None:
    index = VectorStoreIndex.from_documents(DOCUMENTS, embed_model=MockEmbedding(embed_dim=8))
    engine = index.as_query_engine(llm=llm, similarity_top_k=2)
    answer = await engine.aquery("How many books has the library of Alder?")
    assert len(answer.source_nodes) == 2
    assert str(answer).strip()
    streamed = index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True).query(
        "How many books has the library of Alder?"
    )
    assert "".join(streamed.response_gen) == str(answer)


def test_tree_summarize_counts_every_call_it_makes(count_everything: VLLM, counter: TokenCountingHandler) -> None:
    engine = SummaryIndex.from_documents(DOCUMENTS).as_query_engine(
        llm=count_everything, response_mode="tree_summarize", use_async=True
    )
    assert str(engine.query("What is in Alder?")).strip()
    assert counter.total_llm_token_count == sum(event.total_token_count for event in counter.llm_token_counts) > 0


def test_a_chat_engine_remembers_what_was_said(llm: VLLM) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=plain_memory())
    engine.chat("My name is Ann.")
    assert "Ann" in "".join(engine.stream_chat("What is my name?").response_gen)
