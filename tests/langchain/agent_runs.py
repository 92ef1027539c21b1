"""What the tests of agents share: how they are asked, and how a right run looks."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from tests.support.agent_tools import SUM_ANSWER


def search(query: str) -> str:
    """Search the web."""
    return f"{query} is 34 years old."


def ask(text: str) -> dict[str, Any]:
    """The input of an agent."""
    return {"messages": [("user", text)]}


def on_thread(name: str) -> Any:
    """The config of a run whose checkpoints are kept under ``name``."""
    return {"configurable": {"thread_id": name}}


def assert_two_steps(messages: list[BaseMessage]) -> None:
    """The question, two calls with their results, and the answer; each answer of the model with its own usage."""
    assert [type(message).__name__.removesuffix("Chunk") for message in messages] == [
        "HumanMessage", "AIMessage", "ToolMessage", "AIMessage", "ToolMessage", "AIMessage",
    ]  # fmt: skip
    answers = [message for message in messages if isinstance(message, AIMessage)]
    calls = [(call["name"], call["args"]) for answer in answers for call in answer.tool_calls]
    assert calls == [("add", {"a": 12, "b": 30}), ("multiply", {"a": 42, "b": 7})]
    assert messages[-1].text == SUM_ANSWER
    assert all(answer.usage_metadata and answer.usage_metadata["output_tokens"] > 1 for answer in answers)
    assert [answer.response_metadata["finish_reason"] for answer in answers] == ["tool_calls", "tool_calls", "stop"]
    assert not any(answer.invalid_tool_calls for answer in answers)
