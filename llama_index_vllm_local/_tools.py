"""Tools and tool calls: LlamaIndex's -> OpenAI's, and the calls of an answer as agents want them. Pure."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from shared_engine.errors import InvalidInputError

_TOOL_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


# ---- out


def to_openai_tools(tools: Iterable[Any]) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, from LlamaIndex's tools or from that form itself."""
    return [
        dict(tool) if isinstance(tool, Mapping) else tool.metadata.to_openai_tool(skip_length_check=True)
        for tool in tools
    ]


def to_openai_tool_choice(
    choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]], required: bool = False
) -> str | dict[str, Any]:
    """``auto``, ``none``, ``required`` (also: ``any``), or the one tool to call, by its name or in OpenAI's form.

    Raises:
        InvalidInputError: no tool has that name; names the nearest.
    """
    if choice is None:
        return "required" if required else "auto"
    if isinstance(choice, Mapping):
        return dict(choice)
    if choice in _TOOL_CHOICES:
        return _TOOL_CHOICES[choice]
    names = [str(tool["function"]["name"]) for tool in tools]
    if choice not in names:
        near = difflib.get_close_matches(choice, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"tools: {', '.join(names) or 'none'}"
        raise InvalidInputError(f"tool_choice = {choice!r} names no tool; {hint}")
    return {"type": "function", "function": {"name": choice}}


def openai_tool_call(call_id: str | None, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": text}}


# ---- in, for agents


def to_tool_selections(message: ChatMessage) -> list[ToolSelection]:
    """The tools that a message calls. Arguments that are not (yet) whole are read as far as they go."""
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    return [
        ToolSelection(
            tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=_read_arguments(call.tool_kwargs)
        )
        for call in calls
    ]


def _read_arguments(arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    if not isinstance(arguments, str):
        return dict(arguments)
    for read in (json.loads, parse_partial_json):
        with contextlib.suppress(ValueError):
            found = read(arguments)
            return found if isinstance(found, dict) else {}
    return {}
