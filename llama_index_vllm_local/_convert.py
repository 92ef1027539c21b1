"""LlamaIndex's values <-> the engine's: messages and tools out, answers and their pieces in. Pure.

Shared by all eight endpoints, so that an answer reads the same whether it came whole or streamed, sync or async.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

from shared_engine.errors import InvalidInputError
from shared_engine.results import Choice, GenerationChunk, GenerationResult, TokenUsage, ToolCall, ToolCallDelta

# LlamaIndex's words for roles that a chat template knows by another name.
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant", MessageRole.FUNCTION: "tool"}
_TOOL_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


# ---- messages out


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
            calls.append(_openai_tool_call(block.tool_call_id, block.tool_name, block.tool_kwargs))
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


def _openai_tool_call(call_id: str | None, name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": text}}


def _plain(call: Any) -> Any:
    """A tool call as a dict; the OpenAI package's objects are pydantic models."""
    return call.model_dump(exclude_none=True) if hasattr(call, "model_dump") else call


# ---- tools out


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


# ---- whole answers in


def to_chat_response(result: GenerationResult) -> ChatResponse:
    """A whole answer to a conversation; ``raw["choices"]`` has all ``n``."""
    first = result.choices[0]
    return ChatResponse(
        message=_to_message(first),
        raw=_raw(result.choices, result.usage, result.request_id, result.model),
        logprobs=_logprobs(first.logprobs),
        additional_kwargs=_usage_dict(result.usage),
    )


def to_completion_response(result: GenerationResult) -> CompletionResponse:
    """A whole answer to a prompt; ``raw["choices"]`` has all ``n``."""
    return CompletionResponse(
        text=result.text,
        raw=_raw(result.choices, result.usage, result.request_id, result.model),
        logprobs=_logprobs(result.logprobs),
        additional_kwargs=_usage_dict(result.usage),
    )


def _to_message(choice: Choice) -> ChatMessage:
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in choice.tool_calls
    ]
    blocks: list[Any] = [ThinkingBlock(content=choice.reasoning)] if choice.reasoning else []
    if choice.text or not calls:
        blocks.append(TextBlock(text=choice.text))
    # Both places: agents read the blocks, LlamaIndex's streamed structured output reads only additional_kwargs.
    mirrored = [_openai_tool_call(call.id, call.name, call.arguments) for call in choice.tool_calls]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[*blocks, *calls],
        additional_kwargs={"tool_calls": mirrored} if mirrored else {},
    )


def _raw(choices: Iterable[Choice], usage: TokenUsage | None, request_id: str, model: str) -> dict[str, Any]:
    raw = {"id": request_id, "model": model, "choices": [msgspec.to_builtins(choice) for choice in choices]}
    # TokenCountingHandler reads dict(raw)["usage"].
    return raw if usage is None else {**raw, "usage": _usage_dict(usage)}


def _usage_dict(usage: TokenUsage) -> dict[str, int]:
    counts = {**msgspec.to_builtins(usage), "total_tokens": usage.total_tokens}
    return {name: count for name, count in counts.items() if count is not None}


def _logprobs(logprobs: Mapping[str, Any] | None) -> list[list[LogProb]] | None:
    """For each token: the one that was sampled, then its alternatives."""
    if not logprobs:
        return None
    if "content" in logprobs:  # of a chat
        tokens = logprobs["content"] or ()
        return [[_logprob(token), *map(_logprob, _alternatives(token))] for token in tokens]
    sampled = zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        [LogProb(token=token, logprob=value)]
        + [LogProb(token=other, logprob=top[other]) for other in top or () if other != token]
        for (token, value), top in zip(sampled, tops, strict=True)
    ]


def _logprob(token: Mapping[str, Any]) -> LogProb:
    return LogProb(token=token["token"], logprob=token["logprob"], bytes=token.get("bytes") or [])


def _alternatives(token: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [other for other in token.get("top_logprobs") or () if other["token"] != token["token"]]


# ---- streamed answers in


class StreamedAnswer:
    """One answer as far as it has arrived. Each piece becomes a response that holds all of it so far."""

    def __init__(self) -> None:
        self._choice = Choice(text="")
        self._calls: dict[int, ToolCall] = {}

    def add_to_chat(self, chunk: GenerationChunk) -> ChatResponse:
        self._add(chunk)
        return ChatResponse(message=_to_message(self._choice), **self._common(chunk))

    def add_to_completion(self, chunk: GenerationChunk) -> CompletionResponse:
        self._add(chunk)
        return CompletionResponse(text=self._choice.text, **self._common(chunk))

    def _add(self, chunk: GenerationChunk) -> None:
        before = self._choice
        for delta in chunk.tool_calls:
            self._calls[delta.index] = _extended(self._calls.get(delta.index), delta)
        self._choice = Choice(
            text=before.text + chunk.text,
            finish_reason=chunk.finish_reason or before.finish_reason,
            stop_reason=before.stop_reason if chunk.stop_reason is None else chunk.stop_reason,
            # A call without its name is nothing that anyone could act on yet.
            tool_calls=tuple(call for _, call in sorted(self._calls.items()) if call.name),
            reasoning=(before.reasoning or "") + chunk.reasoning if chunk.reasoning else before.reasoning,
        )

    def _common(self, chunk: GenerationChunk) -> dict[str, Any]:
        return {
            "delta": chunk.text,
            "raw": _raw([self._choice], chunk.usage, chunk.request_id, chunk.model),
            "logprobs": _logprobs(chunk.logprobs),
            "additional_kwargs": {
                **({"thinking_delta": chunk.reasoning} if chunk.reasoning else {}),
                **(_usage_dict(chunk.usage) if chunk.usage is not None else {}),
            },
        }


def _extended(call: ToolCall | None, delta: ToolCallDelta) -> ToolCall:
    before = call or ToolCall(name="", arguments="")
    return ToolCall(
        id=before.id or delta.id,
        name=before.name or delta.name or "",
        arguments=before.arguments + (delta.arguments or ""),
    )


# ---- tool calls for agents


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
