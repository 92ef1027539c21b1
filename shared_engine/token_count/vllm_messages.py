"""OpenAI's messages and tools -> what vLLM hands to a chat template. Pure, and only for text.

Follows vLLM 0.32: renderers/chat_utils.py, and the order in which its pydantic models write fields. What those would
refuse, or treat in a way not known here, is a doubt: the server knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

ContentFormat = Literal["string", "openai"]

# Message field -> the roles that may have it.
_FIELDS = {
    "role": ("system", "developer", "user", "assistant", "tool"),
    "content": ("system", "developer", "user", "assistant", "tool"),
    "name": ("system", "developer", "user", "assistant", "tool"),
    "tool_calls": ("assistant",),
    "reasoning": ("assistant",),
    "tool_call_id": ("tool",),
}
_TOOL_FIELDS = {"name", "description", "parameters", "strict"}
_BILLING_HEADER = "x-anthropic-billing-header"  # vLLM cuts it out of system messages


def doubt_of_messages(messages: Sequence[Any]) -> str | None:
    """Why these messages, decoded from JSON, are not for ``template_messages``; None if they are."""
    for index, message in enumerate(messages):
        role = message.get("role")
        for field in message:
            if role not in _FIELDS.get(field, ()):
                return f"messages[{index}] of role {role} has the field {field!r}"
        if not isinstance(message.get("name", ""), str) or not isinstance(message.get("tool_call_id", ""), str):
            return f"messages[{index}] has a name or tool_call_id that is no string"
        if not isinstance(message.get("reasoning"), str | None):
            return f"messages[{index}].reasoning is no string"
        if not _is_text(message.get("content"), role):
            return f"messages[{index}].content is more than text"
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(map(_is_tool_call, calls)):
            return f"messages[{index}].tool_calls are not all calls of functions"
    return None


def _is_text(content: Any, role: str) -> bool:
    if content is None:
        return role == "assistant"
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.keys() == {"type", "text"}]
        if len(texts) != len(content) or any(part["type"] != "text" for part in content):
            return False
    else:
        texts = [content]
    if role == "system" and any(str(text).startswith(_BILLING_HEADER) for text in texts):
        return False
    return all(isinstance(text, str) for text in texts)


def _is_tool_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) and call.keys() == {"id", "type", "function"} else None
    return (
        isinstance(function, dict)
        and function.keys() == {"name", "arguments"}
        and call["type"] == "function"
        and all(isinstance(value, str) for value in (call["id"], function["name"], function["arguments"]))
    )


def doubt_of_tools(tools: Sequence[Any]) -> str | None:
    """Why these tools, decoded from JSON, are not for ``template_tools``; None if they are."""
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.keys() <= {"type", "function"} else None
        is_plain = (
            isinstance(function, dict)
            and function.keys() <= _TOOL_FIELDS
            and tool.get("type", "function") == "function"
            and isinstance(function.get("name"), str)
            and isinstance(function.get("description"), str | None)
            and isinstance(function.get("parameters"), dict | None)
            and isinstance(function.get("strict"), bool | None)
        )
        if not is_plain:
            return f"tools[{index}] is not only a function with {', '.join(sorted(_TOOL_FIELDS))}"
    return None


def template_messages(messages: Sequence[Mapping[str, Any]], content_format: ContentFormat) -> list[dict[str, Any]]:
    """The messages as a template of that content format gets them."""
    return [_template_message(message, content_format) for message in messages]


def _template_message(message: Mapping[str, Any], content_format: ContentFormat) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    in_parts = content_format == "openai" and role != "tool"
    sent: dict[str, Any] = {
        "role": role,
        "content": [{"type": "text", "text": text} for text in texts] if in_parts else "\n".join(texts),
    }
    if message.get("tool_calls"):
        sent["tool_calls"] = [_template_call(call) for call in message["tool_calls"]]
    if message.get("reasoning") is not None:
        sent["reasoning"] = sent["reasoning_content"] = message["reasoning"]
    for field in ("tool_call_id", "name"):
        if field in message:
            sent[field] = message[field]
    if role == "developer":
        sent["tools"] = None
    return sent


def _template_call(call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except json.JSONDecodeError:
        arguments = {}
    function = {"arguments": arguments if isinstance(arguments, dict) else {}, "name": call["function"]["name"]}
    return {"id": call["id"], "function": function, "type": "function"}


def template_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools as a template gets them."""
    return [{"type": "function", "function": _template_function(tool["function"])} for tool in tools]


def _template_function(function: Mapping[str, Any]) -> dict[str, Any]:
    sent = {field: function.get(field) for field in ("name", "description", "parameters")}
    return sent if function.get("strict") is None else {**sent, "strict": function["strict"]}


def developer_as_system(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Developer messages as system messages, and all system messages as one, in front; if it needs to be."""
    renamed = [
        {**{field: value for field, value in message.items() if field != "tools"}, "role": "system"}
        if message["role"] == "developer"
        else dict(message)
        for message in messages
    ]
    if not any(message["role"] == "system" for message in renamed[1:]):
        return renamed
    system = [_joined(message["content"]) for message in renamed if message["role"] == "system"]
    others = [message for message in renamed if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, system))}, *others]


def _joined(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
