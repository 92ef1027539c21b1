"""Agents that shorten a long conversation by what the profile says of a remote model, from the first line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError

from langchain_vllm_local import ChatVLLM
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers

agents = pytest.importorskip("langchain.agents")  # not in the environment of the oldest releases
middleware = pytest.importorskip("langchain.agents.middleware")


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda agent, asked: agent.invoke(asked),
    "ainvoke": lambda agent, asked: asyncio.run(agent.ainvoke(asked)),
    "stream": lambda agent, asked: list(agent.stream(asked, stream_mode="values"))[-1],
    "batch": lambda agent, asked: agent.batch([asked])[0],
    "abatch": lambda agent, asked: asyncio.run(agent.abatch([asked]))[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", [{}, {"max_model_len": 2048}], ids=["asked for", "set"])
def test_a_long_conversation_with_a_remote_model_is_summarised(
    server: RemoteServer, settings: dict[str, Any], way: str
) -> None:
    answers(server, "They have talked about words.", "Fine.")
    llm = ChatVLLM(base_url=server.url, model="served", **settings)
    shorten = middleware.SummarizationMiddleware(model=llm, trigger=("fraction", 0.8), keep=("messages", 1))
    agent = agents.create_agent(llm, [], middleware=[shorten])
    talk = [("user", "word " * 300), ("assistant", "word " * 300)] * 3
    messages = WAYS[way](agent, {"messages": [*talk, ("user", "How are you?")]})["messages"]
    assert [message.text for message in messages][-2:] == ["How are you?", "Fine."]
    assert "They have talked about words." in messages[0].text
    lengths = [len(json.dumps(body["messages"])) for _, body in server.requests]
    assert len(lengths) == 2
    assert lengths[1] < 1000 < lengths[0]
    assert [route for route, _ in server.looks] == ([] if settings else ["/v1/models"])


def test_a_short_conversation_stays_whole(server: RemoteServer) -> None:
    llm = ChatVLLM(base_url=server.url, model="served")
    shorten = middleware.SummarizationMiddleware(model=llm, trigger=("fraction", 0.8), keep=("messages", 1))
    agents.create_agent(llm, [], middleware=[shorten]).invoke({"messages": [("user", "word " * 300), ("user", "Hi")]})
    assert len(server.requests) == 1


def test_a_prompt_that_turns_out_too_long_is_a_context_overflow(server: RemoteServer) -> None:
    """Of which middleware of others makes a summary and goes on."""
    server.fails(400, message="max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)")
    with pytest.raises(ContextOverflowError):
        agents.create_agent(ChatVLLM(base_url=server.url, model="served"), []).invoke({"messages": [("user", "Hi")]})
