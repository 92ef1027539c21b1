"""A conversation -> the prompt that vLLM makes of it, by the model's chat template, as vLLM exported it.

What vLLM does to messages and tools before it renders them is done here too, for the plain forms only: text, calls
and results of tools, reasoning. Probes show that both come to the same prompts; all other forms are the server's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_engine.conversations.templates import compiled_template
from shared_engine.token_count.source import ServerOnlyError

_ROLES = ("system", "user", "assistant", "tool")
_KEYS = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"))
_CALL = frozenset(("id", "type", "function"))
_FUNCTION = frozenset(("name", "description", "parameters", "strict"))
# Switches of the rendering, which the server handles before the template sees anything.
_NOT_VARIABLES = frozenset(
    ("chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "documents", "messages", "tools")
)
_BILLING_HEADER = "x-anthropic-billing-header"  # newer releases drop it


class UnknownFormError(Exception):
    """Only the server knows what it makes of this."""


class ChatTemplate:
    """The templates of one model, for conversations without tools and with.

    Args:
        exported: ``chat`` of launcher/export_tokenizer.py.

    Raises:
        ServerOnlyError: a conversation becomes another prompt here than in vLLM, or vLLM exported none.
    """

    def __init__(self, exported: Mapping[str, Any]) -> None:
        if "refusal" in exported:
            raise ServerOnlyError(exported["refusal"])
        try:
            self._templates = {name: compiled_template(exported[name]["template"]) for name in ("plain", "tools")}
        except ImportError:
            raise ServerOnlyError("jinja2 is not installed here: pip install jinja2") from None
        except Exception as exc:  # jinja2's own: a tag that this version does not know
            raise ServerOnlyError(f"jinja2 here can't read its chat template ({exc})") from exc
        self._formats = {name: exported[name]["content_format"] for name in ("plain", "tools")}
        self._special_tokens = exported["special_tokens"]
        tells_time = any("strftime_now" in exported[name]["template"] for name in ("plain", "tools"))
        for messages, tools, variables, expected in exported["probes"]:
            prompt = self.prompt(messages, tools, variables)
            if prompt != expected and not (tells_time and prompt and expected and len(prompt) == len(expected)):
                raise ServerOnlyError(f"a conversation becomes another prompt here than in vLLM: {messages!r:.200}")

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str | None:
        """The text that is tokenized, without special tokens around it; None where only the server knows it."""
        name = "tools" if tools else "plain"
        if not _NOT_VARIABLES.isdisjoint(variables):
            return None
        try:
            conversation = [_message(message, self._formats[name]) for message in messages]
            offered = [_tool(tool) for tool in tools] if tools else None
            rendered: str = self._templates[name].render(
                messages=conversation,
                tools=offered,
                documents=None,
                add_generation_prompt=True,
                **{**self._special_tokens, **variables},
            )
        except Exception:  # the template refuses it, as the server will say; or it is no form that is known here
            return None
        return rendered


def _message(message: Mapping[str, Any], content_format: str) -> dict[str, Any]:
    role = message["role"]
    if role not in _ROLES or not message.keys() <= _KEYS:
        raise UnknownFormError
    texts = _texts(message.get("content"))
    if role == "system" and any(text.startswith(_BILLING_HEADER) for text in texts):
        raise UnknownFormError
    is_plain = content_format == "string" or role == "tool"
    made: dict[str, Any] = {
        "role": role,
        "content": "\n".join(texts) if is_plain else [{"type": "text", "text": text} for text in texts],
    }
    if role == "assistant":
        if message.get("tool_calls"):
            made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning")
        reasoning = message.get("reasoning_content") if reasoning is None else reasoning
        if reasoning is not None:
            made["reasoning"] = made["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        made["name"] = message["name"]
    return made


def _texts(content: Any) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    for part in content:
        if part.keys() != {"type", "text"} or part["type"] != "text" or not isinstance(part["text"], str):
            raise UnknownFormError
    return [part["text"] for part in content]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if call.keys() != _CALL or call["type"] != "function" or not function.keys() <= {"name", "arguments"}:
        raise UnknownFormError
    arguments = json.loads(function.get("arguments") or "{}")
    if not isinstance(arguments, dict):
        raise UnknownFormError
    # In this order, which a template may show: pydantic's, of the declared types.
    return {"id": call["id"], "function": {"arguments": arguments, "name": function["name"]}, "type": "function"}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    if tool.keys() != {"type", "function"} or tool["type"] != "function" or not function.keys() <= _FUNCTION:
        raise UnknownFormError
    made = {
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    if function.get("strict") is not None:
        made["strict"] = function["strict"]
    return {"type": "function", "function": made}
