"""Packages of other people, which take our models: used as their pages show it, on a server that says what it is told.

By its name, which pytest does not look for: `make test-others` makes the environment of tests/others/packages.txt.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from pydantic import BaseModel

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from tests.support.agent_tools import add, multiply
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call

pytestmark = pytest.mark.timeout(120)


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@pytest.fixture
def llm(server: RemoteServer) -> ChatVLLM:
    server.models = [{"id": "served", "max_model_len": 32_768}]  # deep agents' own instructions have thousands
    return ChatVLLM(base_url=server.url, model="served", temperature=0.0)


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=server.url, model="served", temperature=0.0)


def asked(server: RemoteServer) -> list[dict[str, Any]]:
    return [body for _, body in server.requests]


def tools_of(body: dict[str, Any]) -> set[str]:
    return {tool["function"]["name"] for tool in body.get("tools", ())}


def question(text: str) -> Any:
    return {"messages": [{"role": "user", "content": text}]}


# ---- LangChain's middleware


def test_a_list_of_things_to_do_is_kept(server: RemoteServer, llm: ChatVLLM) -> None:
    from langchain.agents.middleware import TodoListMiddleware

    answers(server, call("write_todos", todos=[{"content": "add", "status": "completed"}]), "Done.")
    result = create_agent(llm, [add], middleware=[TodoListMiddleware()]).invoke(question("Plan."))
    assert result["todos"] == [{"content": "add", "status": "completed"}]
    assert result["messages"][-1].text == "Done."


def test_of_many_tools_some_are_selected(server: RemoteServer, llm: ChatVLLM) -> None:
    from langchain.agents.middleware import LLMToolSelectorMiddleware

    answers(server, '{"tools": ["multiply"]}', call("multiply", a=6, b=7), '{"tools": ["multiply"]}', "It is 42.")
    agent = create_agent(llm, [add, multiply], middleware=[LLMToolSelectorMiddleware(max_tools=1)])
    assert agent.invoke(question("What is 6 * 7?"))["messages"][-1].text == "It is 42."
    assert tools_of(asked(server)[1]) == {"multiply"}


# ---- LangGraph's


def test_deepagents_writes_reads_and_calls(server: RemoteServer, llm: ChatVLLM) -> None:
    from deepagents import create_deep_agent

    answers(
        server,
        call("write_file", file_path="/notes.md", content="12 + 30"),
        call("read_file", file_path="/notes.md"),
        call("add", a=12, b=30),
        "It is 42.",
    )
    agent = create_deep_agent(model=llm, tools=[add], system_prompt="You calculate.")
    result = agent.invoke(question("What is 12 + 30?"))
    assert result["messages"][-1].text == "It is 42."
    assert {"add", "write_file", "read_file", "task"} <= tools_of(asked(server)[0])
    told = [message["content"] for message in asked(server)[-1]["messages"] if message["role"] == "tool"]
    assert "12 + 30" in told[1]
    assert told[2] == "42"


def test_deepagents_hands_a_task_to_a_subagent(server: RemoteServer, llm: ChatVLLM) -> None:
    from deepagents import create_deep_agent

    answers(
        server,
        call("task", description="Add 12 and 30.", subagent_type="adder"),
        call("add", a=12, b=30),
        "The sum is 42.",
        "It is 42.",
    )
    adder = {"name": "adder", "description": "Adds.", "system_prompt": "Add.", "tools": [add]}
    agent = create_deep_agent(model=llm, subagents=[adder])
    result = asyncio.run(agent.ainvoke(question("What is 12 + 30?")))
    assert result["messages"][-1].text == "It is 42."
    assert "The sum is 42." in str(asked(server)[-1]["messages"])


def test_langgraph_supervisor(server: RemoteServer, llm: ChatVLLM) -> None:
    from langgraph_supervisor import create_supervisor

    answers(server, call("transfer_to_adder"), call("add", a=12, b=30), "42", "The adder says 42.")
    adder = create_agent(llm, [add], name="adder")
    team = create_supervisor([adder], model=llm, prompt="You lead an adder.").compile()
    result = team.invoke(question("What is 12 + 30?"))
    assert result["messages"][-1].text == "The adder says 42."


def test_langgraph_swarm(server: RemoteServer, llm: ChatVLLM) -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph_swarm import create_handoff_tool, create_swarm

    answers(server, call("transfer_to_adder"), call("add", a=12, b=30), "It is 42.", "Still 42.")
    talker = create_agent(llm, [create_handoff_tool(agent_name="adder")], name="talker")
    adder = create_agent(llm, [add, create_handoff_tool(agent_name="talker")], name="adder")
    app = create_swarm([talker, adder], default_active_agent="talker").compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    assert app.invoke(question("What is 12 + 30?"), thread)["messages"][-1].text == "It is 42."
    assert app.invoke(question("Sure?"), thread)["active_agent"] == "adder"


def test_trustcall_has_a_wrong_answer_corrected(server: RemoteServer, llm: ChatVLLM) -> None:
    from trustcall import create_extractor

    first = call("Person", '{"name": "Anna", "age": "thirty"}')
    wrong_id = first["tool_calls"][0]["id"]
    patch = {"op": "replace", "path": "/age", "value": 31}
    answers(server, first, call("PatchFunctionErrors", json_doc_id=wrong_id, planned_edits="age", patches=[patch]))
    extractor = create_extractor(llm, tools=[Person], tool_choice="Person")
    result = extractor.invoke(question("Anna is 31."))
    assert result["responses"] == [Person(name="Anna", age=31)]


def test_langmem_keeps_what_it_was_told(server: RemoteServer, llm: ChatVLLM) -> None:
    from langmem import create_memory_manager

    answers(server, call("Person", '{"name": "Anna", "age": 31}'), "Nothing else.")
    manager = create_memory_manager(llm, schemas=[Person], enable_inserts=True)
    memories = manager.invoke({"messages": [{"role": "user", "content": "I am Anna, 31."}]})
    assert [memory.content for memory in memories] == [Person(name="Anna", age=31)]


MCP_SERVER = """
from mcp.server.fastmcp import FastMCP
from mcp.types import ResourceLink, TextContent

mcp = FastMCP("sums")

@mcp.tool()
def add(a: int, b: int) -> list[TextContent | ResourceLink]:
    '''Add.'''
    link = ResourceLink(type="resource_link", name="log", uri="file:///sums.log", mimeType="text/plain")
    return [TextContent(type="text", text=str(a + b)), link]

mcp.run()
"""


def test_an_mcp_servers_tool_may_answer_with_a_link(server: RemoteServer, llm: ChatVLLM, tmp_path: Path) -> None:
    from langchain_mcp_adapters.client import MultiServerMCPClient

    script = tmp_path / "sums.py"
    script.write_text(MCP_SERVER)
    answers(server, call("add", a=12, b=30), "It is 42.")
    client = MultiServerMCPClient({"sums": {"command": sys.executable, "args": [str(script)], "transport": "stdio"}})

    async def run() -> Any:
        agent = create_agent(llm, await client.get_tools())
        return await agent.ainvoke(question("What is 12 + 30?"))

    assert asyncio.run(run())["messages"][-1].text == "It is 42."
    told = next(message for message in asked(server)[-1]["messages"] if message["role"] == "tool")
    assert "42" in str(told["content"])
    assert "file:///sums.log" in str(told["content"])


# ---- traces


def test_openinference_sees_requests_and_their_tokens(server: RemoteServer, llm: ChatVLLM, remote: VLLM) -> None:
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    seen = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    instrumentors = [LangChainInstrumentor(), LlamaIndexInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    try:
        answers(server, "Hello!")
        llm.invoke("Hi")
        remote.complete("Hi")
        assert "".join(chunk.text for chunk in llm.stream("Hi")) == "Hello!"
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
    spans = [span.attributes or {} for span in seen.get_finished_spans()]
    of_models = [each for each in spans if each.get("openinference.span.kind") == "LLM"]
    assert len(of_models) >= 3
    assert all(each.get("llm.token_count.prompt") for each in of_models), of_models


# ---- evaluation


def test_deepeval_takes_a_judge(server: RemoteServer, llm: ChatVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEVAL_TELEMETRY_OPT_OUT", "YES")
    from deepeval.metrics import GEval
    from deepeval.models import DeepEvalBaseLLM
    from deepeval.test_case import LLMTestCase, SingleTurnParams

    class Judge(DeepEvalBaseLLM):  # type: ignore[misc, unused-ignore]
        def load_model(self) -> ChatVLLM:
            return llm

        def generate(self, prompt: str, schema: type[BaseModel] | None = None) -> Any:
            return llm.with_structured_output(schema).invoke(prompt) if schema else llm.invoke(prompt).text

        async def a_generate(self, prompt: str, schema: type[BaseModel] | None = None) -> Any:
            if schema is not None:
                return await llm.with_structured_output(schema).ainvoke(prompt)
            return (await llm.ainvoke(prompt)).text

        def get_model_name(self) -> str:
            return "served"

    parameters = [SingleTurnParams.ACTUAL_OUTPUT, SingleTurnParams.EXPECTED_OUTPUT]
    case = LLMTestCase(input="What is 12 + 30?", actual_output="42", expected_output="42")
    for in_parallel in (False, True):
        answers(server, '{"steps": ["Compare the numbers."]}', '{"score": 9, "reason": "They are equal."}')
        metric = GEval("Right", parameters, "Is it right?", model=Judge(), async_mode=in_parallel)
        metric.measure(case, _show_indicator=False)
        assert (metric.score, metric.reason) == (0.9, "They are equal.")
