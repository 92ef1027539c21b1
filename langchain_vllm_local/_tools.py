"""Tools and tool calls: LangChain's -> OpenAI's, and the calls of an answer as LangChain has them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCallChunk
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.function_calling import convert_to_openai_tool

from shared_engine.adapting.structured import CUT_OFF
from shared_engine.adapting.tools import arguments_of, stand_in, to_tool_choice, with_parameters
from shared_engine.results import ToolCall, ToolCallDelta

# ---- out


def to_openai_tools(tools: Iterable[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, from all that LangChain calls a tool."""
    return with_parameters(convert_to_openai_tool(tool, strict=strict) for tool in tools)


def to_openai_tool_choice(
    choice: str | Mapping[str, Any] | bool | None, tools: Sequence[Mapping[str, Any]]
) -> str | dict[str, Any] | None:
    """``auto``, ``none``, ``required`` (also: ``any``, True), or the one tool to call, by its name or in OpenAI's form.

    Raises:
        InvalidInputError: it names no tool of ``tools``; names the nearest.
    """
    if not choice:  # "" too, as ChatOpenAI has it
        return None
    if choice is True:
        return "required"
    return to_tool_choice(choice, tools)


def openai_tool_call(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": call_id or "", "type": "function", "function": {"name": name or "", "arguments": arguments}}


# ---- in


def to_tool_calls(
    calls: Iterable[ToolCall], finish_reason: str | None = None
) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    """The calls that can be made, and those whose arguments are not a JSON object, with the reason.

    One of these, unless it was cut off, is also among the first, under a name that no tool has (``stand_in``): an
    agent would end with an answer that has invalid calls only, and so it tells the model.
    """
    valid: list[LangChainToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        if not call.arguments and finish_reason in CUT_OFF:
            error = "the answer was cut off before its arguments"
            invalid.append(invalid_tool_call(name=call.name, args="", id=call.id, error=error))
            continue
        try:
            valid.append(tool_call(name=call.name, args=arguments_of(call.arguments), id=call.id))
        except ValueError as exc:
            error = f"the arguments are {exc}"
            invalid.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=error))
            if finish_reason not in CUT_OFF:
                valid.append(tool_call(name=stand_in(call.name), args={}, id=call.id))
    return valid, invalid


def to_tool_call_chunks(deltas: Iterable[ToolCallDelta]) -> list[ToolCallChunk]:
    """One chunk for each call. vLLM sends two pieces of a call at once; LangChain would add up only the first."""
    chunks: dict[int, ToolCallChunk] = {}
    for delta in deltas:
        before = chunks.setdefault(delta.index, tool_call_chunk(index=delta.index))
        chunks[delta.index] = tool_call_chunk(
            name=before["name"] or delta.name,
            args=before["args"] if delta.arguments is None else (before["args"] or "") + delta.arguments,
            id=before["id"] or delta.id,
            index=delta.index,
        )
    return list(chunks.values())
