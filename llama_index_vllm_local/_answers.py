"""The engine's answers -> LlamaIndex's responses, whole and streamed. Pure.

Shared by all eight endpoints, so that an answer reads the same whether it came whole or streamed, sync or async.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)  # fmt: skip

from llama_index_vllm_local._tools import openai_tool_call
from shared_engine.results import Choice, GenerationChunk, GenerationResult, TokenUsage, ToolCall

_USAGE_DETAILS = {"cached_tokens": "prompt_tokens_details", "reasoning_tokens": "completion_tokens_details"}


Response = TypeVar("Response", ChatResponse, CompletionResponse)

# ---- whole


def to_chat_response(result: GenerationResult) -> ChatResponse:
    """A whole answer to a conversation; ``raw["choices"]`` has all ``n``."""
    first = result.choices[0]
    return ChatResponse(
        message=_to_message(first),
        raw=_raw(result.choices, result, result.max_tokens_lowered_to, result.additional_fields, result.raw),
        logprobs=_logprobs(first.logprobs),
        additional_kwargs={**_counts(result.usage), **_lowered(result.max_tokens_lowered_to)},
    )


def to_completion_response(result: GenerationResult) -> CompletionResponse:
    """A whole answer to a prompt; ``raw["choices"]`` has all ``n``."""
    return CompletionResponse(
        text=result.text,
        raw=_raw(result.choices, result, result.max_tokens_lowered_to, result.additional_fields, result.raw),
        logprobs=_logprobs(result.logprobs),
        additional_kwargs={**_counts(result.usage), **_lowered(result.max_tokens_lowered_to)},
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
    mirrored = [openai_tool_call(call.id, call.name, call.arguments) for call in choice.tool_calls]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[*blocks, *calls],
        additional_kwargs={"tool_calls": mirrored} if mirrored else {},
    )


def _raw(
    choices: Iterable[Choice],
    answer: GenerationResult | GenerationChunk,
    lowered_to: int | None,
    additional_fields: Mapping[str, Any] | None,
    sent: Any,
) -> dict[str, Any]:
    raw = {
        "id": answer.request_id,
        "model": answer.model,
        "choices": [msgspec.to_builtins(choice) for choice in choices],
        **_lowered(lowered_to),
        **({"additional_fields": additional_fields} if additional_fields else {}),
        **({"raw": sent} if sent else {}),
    }
    # TokenCountingHandler reads dict(raw)["usage"]; tracers read its details, as OpenAI nests them.
    return raw if answer.usage is None else {**raw, "usage": _openai_usage(answer.usage)}


def _lowered(to: int | None) -> dict[str, Any]:
    return {} if to is None else {"max_tokens_lowered_to": to}


def _openai_usage(usage: TokenUsage) -> dict[str, Any]:
    """The counts in OpenAI's form; details only where the server sent them."""
    form: dict[str, Any] = dict(_counts(usage))
    for detail, place in _USAGE_DETAILS.items():
        if detail in form:
            form[place] = {detail: form.pop(detail)}
    return form


def _counts(usage: TokenUsage) -> dict[str, int]:
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
        if value is not None  # the first token of an echoed prompt follows nothing
    ]


def _logprob(token: Mapping[str, Any]) -> LogProb:
    return LogProb(token=token["token"], logprob=token["logprob"], bytes=token.get("bytes") or [])


def _alternatives(token: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [other for other in token.get("top_logprobs") or () if other["token"] != token["token"]]


# ---- streamed


class StreamedAnswer:
    """One answer as far as it has arrived. Each piece becomes a response that holds all of it so far.

    Only the last response has the usage, if the server sent it, so that sums over a stream are right.
    """

    def __init__(self) -> None:
        self._choice = Choice(text="")
        self._calls: dict[int, ToolCall] = {}
        self._logprobs: list[list[LogProb]] = []
        self._lowered_to: int | None = None
        self._additional_fields: dict[str, Any] | None = None
        self._events: list[Any] = []

    def add_to_chat(self, chunk: GenerationChunk) -> ChatResponse:
        self._add(chunk)
        return self._with_logprobs(ChatResponse(message=_to_message(self._choice), **self._common(chunk)))

    def add_to_completion(self, chunk: GenerationChunk) -> CompletionResponse:
        self._add(chunk)
        return self._with_logprobs(CompletionResponse(text=self._choice.text, **self._common(chunk)))

    def _add(self, chunk: GenerationChunk) -> None:
        before = self._choice
        self._lowered_to = self._lowered_to or chunk.max_tokens_lowered_to
        self._logprobs += _logprobs(chunk.logprobs) or ()
        self._events += chunk.raw or ()
        of_choice = before.additional_fields
        if chunk.finish_reason is not None:
            of_choice = chunk.additional_fields
        elif chunk.additional_fields:
            self._additional_fields = chunk.additional_fields
        for delta in chunk.tool_calls:
            self._calls[delta.index] = self._calls.get(delta.index, ToolCall()).extended(delta)
        self._choice = Choice(
            text=before.text + chunk.text,
            finish_reason=chunk.finish_reason or before.finish_reason,
            stop_reason=before.stop_reason if chunk.stop_reason is None else chunk.stop_reason,
            # A call without its name is nothing that anyone could act on yet.
            tool_calls=tuple(call for _, call in sorted(self._calls.items()) if call.name),
            reasoning=(before.reasoning or "") + chunk.reasoning if chunk.reasoning else before.reasoning,
            additional_fields=of_choice,
        )

    def _with_logprobs(self, response: Response) -> Response:
        # Afterwards: the constructor would look at those of all tokens so far, for each token.
        response.logprobs = list(self._logprobs) or None
        return response

    def _common(self, chunk: GenerationChunk) -> dict[str, Any]:
        return {
            "delta": chunk.text,
            "raw": _raw([self._choice], chunk, self._lowered_to, self._additional_fields, list(self._events)),
            "additional_kwargs": {
                **({"thinking_delta": chunk.reasoning} if chunk.reasoning else {}),
                **(_counts(chunk.usage) if chunk.usage is not None else {}),
                **_lowered(self._lowered_to),
            },
        }
