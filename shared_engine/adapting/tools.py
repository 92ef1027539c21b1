"""Tools in OpenAI's form: which of them an answer may call, and whether its arguments follow their schemas. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from shared_engine.errors import InvalidInputError

Tool = Mapping[str, Any]

_WORDS = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def with_strict_arguments(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools, each marked strict unless it has its own ``strict``; the schemas stay as they are."""
    return [
        {**tool, "function": {"strict": True, **tool["function"]}} if "function" in tool else dict(tool)
        for tool in tools
    ]


def with_parameters(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools; a function that has no parameters says so, as vllm-router takes none that leaves them out."""
    return [_with_parameters(tool) if isinstance(tool.get("function"), Mapping) else dict(tool) for tool in tools]


def _with_parameters(tool: Tool) -> dict[str, Any]:
    function = tool["function"]
    if function.get("parameters") is not None:
        return dict(tool)
    return {**tool, "function": {**function, "parameters": {"type": "object", "properties": {}}}}


def named_once(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools, of which each comes once.

    Raises:
        InvalidInputError: naming the position of what is not a function with a name, or shares its name with a
            different one.
    """
    known: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise InvalidInputError(
                f"tools[{index}] is not a tool in OpenAI's form, {{'type': 'function', 'function': {{'name': ...}}}}: "
                f"{dict(tool)!r:.80}"
            )
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"tools[{index}] has no name for the model to call it by")
        if known.setdefault(name, dict(tool)) != tool:
            raise InvalidInputError(f"tools[{index}] has the name of another tool, {name!r}: a call would be ambiguous")
    return list(known.values())


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


# ---- calls whose arguments are not a JSON object

_MALFORMED = "__malformed_arguments"


def stand_in(name: str) -> str:
    """A name that no tool has, for a call of ``name`` that can't be made: its arguments are not a JSON object.

    Agents answer a call of an unknown tool themselves: the model is told, and tries again. Under its real name the
    tool might run, with its defaults.
    """
    return name + _MALFORMED


def is_stand_in(name: str) -> bool:
    """Whether ``stand_in`` made the name."""
    return name.endswith(_MALFORMED)


def without_stand_in(name: str) -> str:
    """The name of the tool that the model meant."""
    return name.removesuffix(_MALFORMED)


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments of a call, as the model wrote them. Without any, models and servers write nothing, or ``null``.

    Raises:
        ValueError: they are not a JSON object; says how.
    """
    try:
        arguments = json.loads(text or "{}", strict=False)  # models write newlines into strings
    except json.JSONDecodeError as exc:
        raise ValueError(f"not valid JSON ({exc})") from exc
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise ValueError("not a JSON object")
    return arguments


def sent_arguments(arguments: Mapping[str, Any] | str, position: str) -> str:
    """The arguments of a call in the history as a JSON object, which chat templates need.

    What is none, because the model wrote it so, becomes an empty one: servers would refuse the conversation for it, in
    each turn to come.

    Raises:
        InvalidInputError: a value has no JSON form; names ``position``.
    """
    if isinstance(arguments, str):
        try:
            return json.dumps(arguments_of(arguments), ensure_ascii=False)
        except ValueError:
            return "{}"
    try:
        return json.dumps(to_jsonable_python(arguments), ensure_ascii=False)
    except ValueError as exc:  # pydantic's PydanticSerializationError is one
        raise InvalidInputError(f"{position}: the call's arguments can't be written as JSON: {exc}") from exc
