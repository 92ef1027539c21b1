"""What the tests of tools and agents share: the tools as LlamaIndex has them, and runs of agents."""

from __future__ import annotations

from typing import Any

from llama_index.core.agent.workflow import AgentStream, ToolCallResult
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool

from tests.support.agent_tools import add, get_weather, multiply

# Described without their signatures, which LlamaIndex would put first: only so does tiny_chat take two steps with them.
ADD, MULTIPLY, GET_WEATHER = (
    FunctionTool.from_defaults(fn=fn, description=fn.__doc__) for fn in (add, multiply, get_weather)
)


class Run:
    """An agent's run: its output, and the events on the way there."""

    def __init__(self, output: Any, events: list[Any]) -> None:
        self.output = output
        self.events = events

    @property
    def text(self) -> str:
        return str(self.output)

    @property
    def results(self) -> list[tuple[str, dict[str, Any], str]]:
        """Of each tool that ran: its name, its arguments and what it said."""
        results = (event for event in self.events if isinstance(event, ToolCallResult))
        return [(event.tool_name, event.tool_kwargs, event.tool_output.content) for event in results]

    @property
    def streamed(self) -> list[AgentStream]:
        return [event for event in self.events if isinstance(event, AgentStream)]


async def run(agent: Any, question: str, **kwargs: Any) -> Run:
    """Let the agent answer; with a memory of its own, for LlamaIndex's default one leaves an SQLite connection open."""
    handler = agent.run(user_msg=question, **{"memory": ChatMemoryBuffer.from_defaults(), **kwargs})
    events = [event async for event in handler.stream_events()]
    return Run(await handler, events)
