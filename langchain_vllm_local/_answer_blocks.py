"""Blocks of an answer that are a call of a tool, or a thought, as LangChain's packages for providers have them. Pure.

In threads that another model began. Core's own list: langchain_core/messages/block_translators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from langchain_vllm_local._blocks import unwrapped

# What a message says a second time, in tool_calls; no tool of the provider's own, which are nowhere else.
_CALLS = frozenset((
    "tool_call", "tool_call_chunk", "invalid_tool_call",  # LangChain's
    "tool_use", "input_json_delta",  # Anthropic's, and Bedrock's
    "function_call", "function_call_signature",  # OpenAI's Responses, and Google's
    "custom_tool_call",  # OpenAI's Responses
))  # fmt: skip
_SPOKEN_FOR_THEMSELVES = ("tool_call", "tool_use", "function_call")
_IDS = ("call_id", "toolUseId", "id")  # of OpenAI's Responses "id" is the block's own
_ARGUMENTS = ("args", "input", "arguments")

_THOUGHTS = frozenset(("reasoning", "thinking", "redacted_thinking", "reasoning_content"))
_THOUGHT_TEXTS = ("reasoning", "thinking", "reasoning_content", "summary", "content")

# The names of Bedrock's own API, whose blocks have no type.
_BEDROCKS = {"toolUse": "tool_use", "reasoningContent": "reasoning_content"}


class Call(NamedTuple):
    """A call that a block makes."""

    call_id: str | None
    name: str
    arguments: Mapping[str, Any] | str


def is_call(block: object) -> bool:
    return _kind(block) in _CALLS


def is_thought(block: object) -> bool:
    return _kind(block) in _THOUGHTS


def call_of(block: object) -> Call | None:
    """The call itself: a history may have it in the block only, and not in ``tool_calls``."""
    fields = _fields(block)
    if fields.get("type") not in _SPOKEN_FOR_THEMSELVES or not fields.get("name"):
        return None
    return Call(_first(fields, _IDS), str(fields["name"]), _first(fields, _ARGUMENTS) or {})


def thought_of(block: object) -> str:
    """Its text; none where it is encrypted."""
    fields = _fields(block)
    between = "\n\n" if fields.get("summary") else ""  # OpenAI's has a part for each paragraph
    return between.join(_texts(_first(fields, _THOUGHT_TEXTS)))


def _kind(block: object) -> Any:
    return _fields(block).get("type")


def _fields(block: object) -> Mapping[Any, Any]:
    if not isinstance(block, Mapping):
        return {}
    fields = unwrapped(block)
    for name, kind in _BEDROCKS.items():
        if "type" not in fields and isinstance(fields.get(name), Mapping):
            return {"type": kind, "content": fields[name], **fields[name]}
    return fields


def _first(fields: Mapping[Any, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name)), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("text") or value.get("reasoningText"))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
