"""An agent with two tools: the model calls one, reads its result, calls the other, and answers."""

import sys
from pathlib import Path

from langchain.agents import create_agent

from langchain_vllm_local import ChatVLLM


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two integers and return the result."""
    return a * b


# On a GPU, with a model of your own: ChatVLLM(model="Qwen/Qwen3-4B"), and no other setting. What reads its tool calls
# is chosen from the model; for one whose format is not known: engine_args={"tool_call_parser": "hermes"}.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, gpu_memory_utilization=0.3)
agent = create_agent(llm, [add, multiply])

question = {"messages": [("user", "Add 12 and 30, then multiply the result by 7.")]}
for update in agent.stream(question, stream_mode="updates"):
    for step in update.values():
        for message in step["messages"]:
            message.pretty_print()
