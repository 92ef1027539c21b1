"""Agents whose tools and memories have what the model can't be shown, or its chat template refuses."""

from __future__ import annotations

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool, ToolOutput

from llama_index_vllm_local import VLLM
from tests.llama_index.agent_runs import run
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call
from tests.support.strict_templates import TEMPLATES, StrictServer

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")


def find(what: str) -> ToolOutput:
    """Find a document."""
    found = [
        TextBlock(text=f"{what} found"),
        DocumentBlock(data=b"%PDF-1.4\n\xff", document_mimetype="application/pdf"),
    ]
    return ToolOutput(blocks=found, tool_name="find", raw_input={"what": what}, raw_output=found)


FIND = FunctionTool.from_defaults(find)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_file_of_a_tool_ends_neither_the_agent_nor_its_memory(server: RemoteServer, streaming: bool) -> None:
    answers(server, call("find", what="report"), "Here it is.", "Hello.")
    agent = FunctionAgent(llm=VLLM(base_url=server.url), tools=[FIND], streaming=streaming)
    memory = ChatMemoryBuffer.from_defaults()
    assert (await run(agent, "Find the report", memory=memory)).text == "Here it is."
    assert (await run(agent, "Hello", memory=memory)).text == "Hello."
    for _, body in server.requests[1:]:
        (said,) = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        assert said.startswith("report found")
        assert "is not shown]" in said or "%PDF" not in said


@pytest.mark.parametrize("family", ["gemma 2", "gemma 3", "qwen 3.5", "mistral"])
async def test_an_agent_with_a_summary_in_its_memory_goes_on(server: RemoteServer, family: str) -> None:
    answers(server, call("find", what="report"), "Here it is.")
    strict = StrictServer(server, TEMPLATES[family])
    history = [
        ChatMessage(role="user", content="One?"),
        ChatMessage(role="assistant", content="One."),
        ChatMessage(role="system", content="Summary: the user is Anna."),
        ChatMessage(role="user", content="Two?"),
    ]
    memory = ChatMemoryBuffer.from_defaults(chat_history=history)
    agent = FunctionAgent(llm=VLLM(base_url=server.url), tools=[FIND], system_prompt="Be brief.")
    assert (await run(agent, "Find the report", memory=memory)).text == "Here it is."
    for said in ("Be brief.", "One?", "Summary: the user is Anna.", "Two?", "Find the report", "report found"):
        assert said in strict.prompts[-1]
