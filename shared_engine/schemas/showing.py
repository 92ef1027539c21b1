"""A schema in the prompt: by itself, vLLM's grammar lets the model write only what fits, and tells it nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# The words that LlamaIndex has for it: models have seen them.
_WORDS = "\n\nHere's a JSON schema to follow:\n{}\n\nOutput a valid JSON object but do not repeat the schema.\n"
_ROLES = (("user",), ("system", "developer"))
# Of classes (adapting/class_schemas.py): in words that models know.
_READABLE = {"any-date-time": "date-time", "any-time": "time"}


def with_schema_shown(messages: Sequence[Mapping[str, Any]], schema: Any) -> list[Mapping[str, Any]]:
    """The conversation, whose last message of the user says what schema the answer has; the system's where there is
    none of the user's.
    """
    text = _WORDS.format(json.dumps(_readable(schema), ensure_ascii=False))
    for roles in _ROLES:
        for index in range(len(messages) - 1, -1, -1):
            if messages[index].get("role") in roles:
                shown = {**messages[index], "content": _with_text(messages[index].get("content"), text)}
                return [*messages[:index], shown, *messages[index + 1 :]]
    return list(messages)


def _with_text(content: Any, text: str) -> Any:
    if isinstance(content, str):
        return content + text
    return [*(content or ()), {"type": "text", "text": text.lstrip()}]


def _readable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_readable(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        keyword: _READABLE.get(value, value) if keyword == "format" and isinstance(value, str) else _readable(value)
        for keyword, value in schema.items()
    }
