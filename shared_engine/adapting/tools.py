"""Tools in OpenAI's form: which of them an answer may call, and whether its arguments follow their schemas. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared_engine.errors import InvalidInputError

Tool = Mapping[str, Any]

_WORDS = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def with_strict_arguments(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools, each marked strict unless it has its own ``strict``; the schemas stay as they are."""
    return [
        {**tool, "function": {"strict": True, **tool["function"]}} if "function" in tool else dict(tool)
        for tool in tools
    ]


def to_tool_choice(choice: str | Mapping[str, Any], tools: Sequence[Tool]) -> str | dict[str, Any]:
    """``auto``, ``none``, ``required`` (also: ``any``), or the one tool to call: by its name, in the form of OpenAI's
    chats or Responses, or in Anthropic's.

    Raises:
        InvalidInputError: no tool has that name; names the nearest.
    """
    names = [str(tool.get("function", {}).get("name")) for tool in tools]
    wanted = choice if isinstance(choice, str) else _wanted(choice)
    if wanted in _WORDS and wanted not in names:
        return _WORDS[wanted]
    if wanted not in names:
        near = difflib.get_close_matches(str(wanted), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"tools: {', '.join(names) or 'none'}"
        raise InvalidInputError(f"tool_choice = {choice!r} is not the name of a tool; {hint}")
    return {"type": "function", "function": {"name": wanted}}


def _wanted(choice: Mapping[str, Any]) -> Any:
    function = choice.get("function")
    named = function if isinstance(function, Mapping) else choice
    return named.get("name", choice.get("type"))
