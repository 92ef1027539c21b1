"""Agents whose tools and histories have what the model can't be shown, or its chat template refuses."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_vllm_local import ChatVLLM
from tests.langchain.agent_runs import ask, on_thread
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call
from tests.support.strict_templates import TEMPLATES, StrictServer

LINK = {"type": "file", "url": "demo://r/1", "mime_type": "application/pdf"}


@tool
def find(what: str) -> Any:
    """Find a document."""
    return [{"type": "text", "text": f"{what} found"}, LINK]


def test_a_file_of_a_tool_ends_neither_the_agent_nor_its_thread(server: RemoteServer) -> None:
    answers(server, call("find", what="report"), "Here it is.", "Hello.")
    agent = create_agent(ChatVLLM(base_url=server.url), [find], checkpointer=InMemorySaver())
    assert agent.invoke(ask("Find the report"), on_thread("one"))["messages"][-1].text == "Here it is."
    assert agent.invoke(ask("Hello"), on_thread("one"))["messages"][-1].text == "Hello."
    for _, body in server.requests[1:]:
        assert body["messages"][2]["content"] == [
            {"type": "text", "text": "report found"},
            {"type": "text", "text": "[file (application/pdf) at demo://r/1 is not shown]"},
        ]


@pytest.mark.parametrize("family", ["gemma 3", "qwen 3.5", "mistral"])
def test_a_thread_with_late_system_messages_goes_on(server: RemoteServer, family: str) -> None:
    answers(server, "One.", "Two.", "Three.")
    strict = StrictServer(server, TEMPLATES[family])
    agent = create_agent(ChatVLLM(base_url=server.url), [], system_prompt="Be brief.", checkpointer=InMemorySaver())
    agent.invoke(ask("One?"), on_thread("one"))
    noted = {"messages": [SystemMessage("The user is Anna."), HumanMessage("Two?"), HumanMessage("Please.")]}
    assert agent.invoke(noted, on_thread("one"))["messages"][-1].text == "Two."
    assert agent.invoke(ask("Three?"), on_thread("one"))["messages"][-1].text == "Three."
    assert all(said in strict.prompts[-1] for said in ("Be brief.", "The user is Anna.", "Two?", "Please.", "Three?"))


@pytest.mark.parametrize("family", ["gemma 2", "gemma 3", "mistral"])
def test_tools_of_another_models_thread_are_told_as_the_template_can(server: RemoteServer, family: str) -> None:
    answers(server, call("find", what="report"), "Here it is.")
    strict = StrictServer(server, TEMPLATES[family])
    agent = create_agent(ChatVLLM(base_url=server.url), [find], system_prompt="Be brief.")
    assert agent.invoke(ask("Find the report"))["messages"][-1].text == "Here it is."
    assert "report found" in strict.prompts[-1]
