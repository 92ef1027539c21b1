"""LlamaIndex's messages -> OpenAI's, as the engine takes them. Pure.

Nothing of the caller's is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)  # fmt: skip

from llama_index_vllm_local._tools import openai_tool_call
from shared_engine.errors import InvalidInputError

# LlamaIndex's words for roles that a chat template knows by another name.
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant", MessageRole.FUNCTION: "tool"}


def to_openai_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form. The caller's messages stay as they are.

    Raises:
        InvalidInputError: naming the message, or the block in it, that can't be sent.
    """
    return [_to_openai_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _to_openai_message(message: ChatMessage, position: str) -> dict[str, Any]:
    if not isinstance(message, ChatMessage):
        raise InvalidInputError(f"{position} must be a ChatMessage, got {type(message).__name__}: {message!r:.80}")
    role = _ROLES.get(message.role, message.role.value)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, ToolCallBlock):
            calls.append(openai_tool_call(block.tool_call_id, block.tool_name, block.tool_kwargs))
        elif not isinstance(block, CachePoint):  # vLLM caches every prefix by itself
            raise InvalidInputError(
                f"{position}.blocks[{index}] is a {type(block).__name__}; text, thinking and tool calls can be sent"
            )
    if not calls:  # from a history that another LLM class wrote
        calls = [_plain(call) for call in message.additional_kwargs.get("tool_calls") or ()]

    sent: dict[str, Any] = {"role": role, "content": "\n".join(texts) if texts or not calls else None}
    if any(thoughts):
        sent["reasoning"] = "\n".join(thoughts)
    if calls:
        sent["tool_calls"] = calls
    sent.update({key: message.additional_kwargs[key] for key in ("tool_call_id", "name") if _has(message, key)})
    return sent


def _has(message: ChatMessage, key: str) -> bool:
    return message.additional_kwargs.get(key) is not None


def _plain(call: Any) -> Any:
    """A tool call as a dict; the OpenAI package's objects are pydantic models."""
    return call.model_dump(exclude_none=True) if hasattr(call, "model_dump") else call
