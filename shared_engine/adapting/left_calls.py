"""Tool calls that a server left in the text of a whole answer, because its parser could not read one of them. Pure.

vLLM's parser for Hermes' format gives the whole text back then, with the marks, as if it were the answer: an agent
would end with it. Streamed, the same calls come as calls (vllm/tool_parsers/hermes_tool_parser.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from uuid import uuid4

from msgspec.structs import replace

from shared_engine.adapting.structured import CUT_OFF
from shared_engine.adapting.tools import Tool
from shared_engine.results import Choice, GenerationResult, ToolCall

_MARK = "<tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_NAME = re.compile(r'\{\s*"name"\s*:\s*"([^"]+)')
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*(.*)', re.DOTALL)


def with_left_calls(result: GenerationResult, tools: Sequence[Tool] | None) -> GenerationResult:
    """The result, with the calls of ``tools`` that are in its text; what could not be read stays as it was written."""
    if not tools or not any(_MARK in choice.text for choice in result.choices):
        return result
    names = {str(tool.get("function", {}).get("name")) for tool in tools}
    return replace(result, choices=tuple(_with_calls(choice, names) for choice in result.choices))


def _with_calls(choice: Choice, names: Collection[str]) -> Choice:
    if choice.tool_calls or choice.finish_reason in CUT_OFF:
        return choice
    is_one = choice.text.lstrip().startswith(_MARK)
    calls = [_call(text, None if is_one else names) for text in _CALL.findall(choice.text)]
    found = [call for call in calls if call is not None]
    if not found or len(found) < len(calls):  # words about calls
        return choice
    return replace(choice, text=choice.text.partition(_MARK)[0].rstrip(), tool_calls=tuple(found))


def _call(text: str, names: Collection[str] | None) -> ToolCall | None:
    """The call, if it is one of the tools with these names; None: whatever it names."""
    named = _NAME.search(text)
    if named is None or (names is not None and named[1] not in names):
        return None
    return ToolCall(id=f"call_{uuid4().hex}", name=named[1], arguments=_arguments(text))


def _arguments(text: str) -> str:
    try:
        return json.dumps(json.loads(text, strict=False)["arguments"], ensure_ascii=False)
    except (ValueError, KeyError, TypeError):
        found = _ARGUMENTS.search(text)
        return found[1].strip() if found else text.strip()[1:]  # not JSON: the call had no arguments of that name
