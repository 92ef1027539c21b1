"""vLLM's JSON -> our values: answers, the events of a stream, vectors, scores, counts. Pure.

Decoded once, straight into typed structs, which skip the fields nobody reads.
"""

from __future__ import annotations

import binascii
from array import array
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from shared_engine.errors import ServerConnectionError, ServerError
from shared_engine.request.refusals import error_in_answer
from shared_engine.results import (
    Choice,
    EmbeddingResult,
    GenerationChunk,
    GenerationResult,
    RankedDocument,
    RerankResult,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    index: int = 0
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the older name
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    """A choice of any of the four answers: chat has message or delta, text has text."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: dict[str, Any] | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Answer(msgspec.Struct):
    """Any of the four answers, or an error in their place."""

    id: str = ""
    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str  # text: base64
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    model: str = ""
    usage: _Usage | None = None


class _Reranked(msgspec.Struct):
    results: list[RankedDocument]
    model: str = ""
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_answer_decoder = msgspec.json.Decoder(_Answer)
_embeddings_decoder = msgspec.json.Decoder(_Embeddings)
_reranked_decoder = msgspec.json.Decoder(_Reranked)
_models_decoder = msgspec.json.Decoder(_Models)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as exc:
        raise ServerError(f"the server's answer is not what vLLM sends ({exc}): {data[:200]!r}") from exc


def parse_result(data: bytes) -> GenerationResult:
    """The body of a finished, unstreamed request.

    Raises:
        RequestError: it is an error in an answer's place, or cut off by the server's end.
    """
    answer = _decode(_answer_decoder, data)
    if answer.error is not None:
        raise error_in_answer(answer.error.message, answer.error.code)
    if not answer.choices:
        raise ServerError("the server's answer has no choices")
    choices = tuple(_choice(choice) for choice in answer.choices)
    if any(choice.finish_reason == "abort" for choice in choices):
        raise _aborted()
    usage = _usage(answer.usage) or TokenUsage()
    return GenerationResult(
        choices=choices,
        usage=_without_false_zero(usage) if any(choice.reasoning for choice in choices) else usage,
        request_id=answer.id,
        model=answer.model,
    )


def _choice(choice: _Choice) -> Choice:
    message = choice.message or _Message(content=choice.text)
    return Choice(
        text=message.content or "",
        index=choice.index,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name or "", arguments=call.function.arguments or "")
            for call in message.tool_calls or ()
            if call.function is not None
        ),
        reasoning=message.reasoning or message.reasoning_content,
        logprobs=choice.logprobs,
    )


class ChunkReader:
    """The chunks of one streamed answer, event by event."""

    def __init__(self) -> None:
        self._has_reasoning = False

    def chunks(self, event: bytes) -> Iterable[GenerationChunk]:
        """Those of one ``data:`` line; none of a keep-alive, or one that says nothing.

        Raises:
            RequestError: it is an error in an answer's place, or the server's end cut the answer off.
        """
        for chunk in parse_event(event):
            if chunk.finish_reason == "abort":
                raise _aborted()
            self._has_reasoning = self._has_reasoning or bool(chunk.reasoning)
            if chunk.usage is not None and self._has_reasoning:
                chunk = replace(chunk, usage=_without_false_zero(chunk.usage))
            if not chunk.is_empty:
                yield chunk


def parse_event(data: bytes) -> list[GenerationChunk]:
    """The chunks of one ``data:`` line, as they were sent; see ``ChunkReader``."""
    answer = _decode(_answer_decoder, data)
    if answer.error is not None:
        raise error_in_answer(answer.error.message, answer.error.code)
    chunks = [_chunk(choice, answer) for choice in answer.choices]
    if answer.usage is not None and not answer.choices:
        chunks.append(GenerationChunk(usage=_usage(answer.usage), request_id=answer.id, model=answer.model))
    return chunks


def _chunk(choice: _Choice, answer: _Answer) -> GenerationChunk:
    delta = choice.delta or _Message(content=choice.text)
    return GenerationChunk(
        text=delta.content or "",
        index=choice.index,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        tool_calls=tuple(_tool_delta(call) for call in delta.tool_calls) if delta.tool_calls else (),
        reasoning=delta.reasoning or delta.reasoning_content,
        logprobs=choice.logprobs,
        request_id=answer.id,
        model=answer.model,
    )


def _tool_delta(call: _ToolCall) -> ToolCallDelta:
    function = call.function or _Function()
    return ToolCallDelta(index=call.index, id=call.id, name=function.name, arguments=function.arguments)


def _usage(usage: _Usage | None) -> TokenUsage | None:
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=None if prompt is None else prompt.cached_tokens,
        reasoning_tokens=None if completion is None else completion.reasoning_tokens,
    )


def _without_false_zero(usage: TokenUsage) -> TokenUsage:
    """The usage of an answer with reasoning. vLLM counts none where the chat template opened the thought: its parsers
    look for the opening token in what was generated (vllm/reasoning/basic_parsers.py, count_reasoning_tokens).
    """
    return usage if usage.reasoning_tokens else replace(usage, reasoning_tokens=None)


def parse_embeddings(data: bytes) -> EmbeddingResult:
    """POST /v1/embeddings; in the order of the texts, also where the server sorted otherwise."""
    answer = _decode(_embeddings_decoder, data)
    ordered = sorted(answer.data, key=lambda item: item.index)
    return EmbeddingResult(
        embeddings=[_vector(item.embedding) for item in ordered],
        usage=_usage(answer.usage) or TokenUsage(),
        model=answer.model,
    )


def _vector(sent: list[float] | str) -> list[float]:
    """Numbers, or the base64 of 32-bit floats in this machine's byte order, as OpenAI's own package reads them."""
    if not isinstance(sent, str):
        return sent
    vector = array("f")
    try:
        vector.frombytes(binascii.a2b_base64(sent))
    except ValueError as exc:
        raise ServerError(f"the server's embedding is not base64 of 32-bit floats ({exc}): {sent[:80]!r}") from exc
    return vector.tolist()


def parse_rerank(data: bytes) -> RerankResult:
    """POST /v1/rerank; best first, also where the server did not sort."""
    answer = _decode(_reranked_decoder, data)
    return RerankResult(
        results=tuple(sorted(answer.results, key=lambda ranked: -ranked.relevance_score)),
        usage=_usage(answer.usage) or TokenUsage(),
        model=answer.model,
    )


def parse_models(data: bytes) -> list[tuple[str, int | None]]:
    """GET /v1/models: (name, max_model_len) of each."""
    return [(model.id, model.max_model_len) for model in _decode(_models_decoder, data).data]


def parse_token_count(data: bytes) -> int:
    """POST /tokenize: how many tokens."""
    return int(_decode(msgspec.json.Decoder(dict[str, Any]), data)["count"])


def parse_tokens(data: bytes) -> list[int]:
    """POST /tokenize: the tokens' ids."""
    return list(_decode(msgspec.json.Decoder(dict[str, Any]), data)["tokens"])


def _aborted() -> ServerConnectionError:
    # vLLM gives what it has as an answer with status 200; it must not be taken for a whole one.
    return ServerConnectionError("the server stopped in the middle of the answer (finish_reason=abort)")
