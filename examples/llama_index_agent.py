"""A FunctionAgent with two tools: the model calls one, reads its result, calls the other, and answers."""

import asyncio
import sys
from pathlib import Path

from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from llama_index_vllm_local import VLLM


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two integers and return the result."""
    return a * b


# On a GPU, with a model of your own: VLLM(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = VLLM(model=model, temperature=0, gpu_memory_utilization=0.3)
# Other models take tools=[add, multiply]; tiny_chat is confused by the signatures that LlamaIndex then shows it.
agent = FunctionAgent(llm=llm, tools=[FunctionTool.from_defaults(f, description=f.__doc__) for f in (add, multiply)])


async def main() -> None:
    run = agent.run("Add 12 and 30, then multiply the result by 7.")
    async for event in run.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"{event.tool_name}({event.tool_kwargs}) = {event.tool_output.content}")
        elif isinstance(event, AgentStream):
            print(event.delta, end="", flush=True)
    print(f"\n{len((await run).tool_calls)} tool calls")  # this also raises what ended the run, if anything did


asyncio.run(main())
