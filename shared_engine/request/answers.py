"""vLLM's JSON -> our values: answers, vectors, scores, counts. Pure. The events of a stream: see ``streams``.

Decoded once, straight into typed structs, which skip the fields nobody reads. What they refuse is another server's way
to say the same: it is read again by ``dialects``.
"""

from __future__ import annotations

import binascii
import math
import uuid
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from shared_engine.errors import RequestError, ServerConnectionError, ServerError
from shared_engine.request import dialects
from shared_engine.request.additional_fields import Fields, of_answer
from shared_engine.request.refusals import error_in_answer
from shared_engine.results import (
    Choice,
    EmbeddingResult,
    GenerationResult,
    MultiVectorResult,
    RankedDocument,
    RerankResult,
    TokenUsage,
    ToolCall,
)


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    reasoning_tokens: int | None = None  # SGLang's place


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolPiece(msgspec.Struct):
    """A tool call, or a piece of one."""

    id: str | None = None
    index: int | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the older name
    reasoning_text: Any = None
    thinking: Any = None
    reasoning_details: Any = None  # OpenRouter's, mostly beside the first
    tool_calls: list[ToolPiece] | None = None

    @property
    def thought(self) -> str | None:
        known = self.reasoning or self.reasoning_content
        elsewhere = self.reasoning_text or self.thinking or self.reasoning_details
        return known if known or not elsewhere else dialects.text_of(elsewhere)


class AnyChoice(msgspec.Struct):
    """A choice of any of the four answers: chat has message or delta, text has text."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: dict[str, Any] | None = None

    @property
    def said(self) -> _Message:
        return self.delta or self.message or _Message(content=self.text)


class AnyAnswer(msgspec.Struct):
    """Any of the four answers, or an error in their place."""

    id: str = ""
    model: str = ""
    choices: list[AnyChoice] = []
    usage: Usage | None = None
    error: Any = None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str  # text: base64
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    model: str = ""
    usage: Usage | None = None


class _Reranked(msgspec.Struct):
    results: list[RankedDocument]
    model: str = ""
    usage: Usage | None = None


_answer_decoder = msgspec.json.Decoder(AnyAnswer)
_embeddings_decoder = msgspec.json.Decoder(_Embeddings)
_reranked_decoder = msgspec.json.Decoder(_Reranked)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes, tidy: Callable[[Any], Any]) -> Any:
    """
    Raises:
        ServerConnectionError: the body ends before its JSON does.
        RequestError: it is none, or not to be understood, or an error in an answer's place.
    """
    try:
        return decoder.decode(data)
    except (msgspec.ValidationError, RecursionError):
        raw = _json(data)
    except msgspec.DecodeError as exc:
        raw = dialects.with_nan(data)
        if raw is None:
            raise _no_json(exc, data) from exc
    _raise_error_in(raw)
    try:
        return msgspec.convert(tidy(raw), decoder.type)
    except msgspec.ValidationError as exc:
        raise _unknown(exc, data) from exc


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as exc:
        raise _no_json(exc, data) from exc
    except RecursionError as exc:
        raise _unknown(exc, data) from exc


def _no_json(error: msgspec.DecodeError, data: bytes) -> RequestError:
    if not data.strip():
        return ServerConnectionError("the server's answer is empty")
    if "truncated" in str(error):
        return ServerConnectionError(f"the server's answer ends in the middle: ...{data[-80:]!r}")
    return _unknown(error, data)


def _unknown(error: Exception, data: bytes) -> ServerError:
    return ServerError(f"the server's answer is not what vLLM sends ({error}): {data[:200]!r}")


def decode_answer(data: bytes) -> AnyAnswer:
    """Any of the four answers.

    Raises:
        ServerConnectionError: ``data`` is the beginning of one.
        RequestError: it is an error in an answer's place, or not to be understood.
    """
    answer: AnyAnswer = _decode(_answer_decoder, data, dialects.answer_of)
    if answer.error is not None or not (answer.choices or answer.usage):
        raise_error_in(data)
    return answer


def raise_error_in(data: bytes) -> None:
    """Raise the error that stands in an answer's place, if one does."""
    _raise_error_in(_json(data))


def _raise_error_in(answer: Any) -> None:
    error = dialects.error_of(answer)
    if error is not None:
        raise error_in_answer(*error)


def parse_result(data: bytes, *, keeps_raw: bool = False, keeps_additional: bool = True) -> GenerationResult:
    """The body of a finished, unstreamed request.

    Args:
        keeps_additional: fields that are not our own, which take another look at all of it.

    Raises:
        RequestError: it is an error in an answer's place, or not a whole answer.
    """
    data = dialects.without_half_pairs(data)
    answer = decode_answer(data)
    if not answer.choices:
        raise ServerError(f"the server's answer has no choices: {data[:200]!r}")
    for choice in answer.choices:
        if not choice.finish_reason:
            raise ServerConnectionError(f"the server's answer is not whole: choice {choice.index} has no finish_reason")
        if choice.finish_reason in NOT_FINISHED:
            raise stopped(choice.finish_reason, data)
    if len({choice.index for choice in answer.choices}) < len(answer.choices):  # a server that leaves it out
        for index, choice in enumerate(answer.choices):
            choice.index = index
    beside, of_choices = of_answer(data) if keeps_additional else ({}, [{}] * len(answer.choices))
    choices = tuple(_choice(choice, fields) for choice, fields in zip(answer.choices, of_choices, strict=True))
    usage = usage_of(answer.usage) or TokenUsage()
    return GenerationResult(
        choices=choices,
        usage=without_false_zero(usage) if any(choice.reasoning for choice in choices) else usage,
        request_id=answer.id,
        model=answer.model,
        additional_fields=beside or None,
        raw=_json(data) if keeps_raw else None,
    )


def _choice(choice: AnyChoice, additional_fields: Fields) -> Choice:
    message = choice.said
    return Choice(
        text=message.content or "",
        index=choice.index,
        finish_reason=dialects.reason_of(choice.finish_reason),
        stop_reason=choice.stop_reason,
        tool_calls=tuple(
            ToolCall(
                id=call.id or new_call_id(), name=call.function.name or "", arguments=call.function.arguments or ""
            )
            for call in message.tool_calls or ()
            if call.function.name or call.function.arguments
        ),
        reasoning=message.thought,
        logprobs=choice.logprobs,
        additional_fields=additional_fields or None,
    )


def new_call_id() -> str:
    """For a server that gives its tool calls none: results are matched to calls by it."""
    return f"call_{uuid.uuid4().hex[:24]}"


NOT_FINISHED = ("abort", "error")
"""Finish reasons of what is not whole; vLLM gives what it has as an answer with status 200."""


def stopped(reason: str, data: bytes) -> RequestError:
    """The error of an answer that the server itself gave up."""
    if reason == "error":
        raise_error_in(data)
        return ServerError("the server failed in the middle of the answer (finish_reason=error)")
    return ServerConnectionError(f"the server stopped in the middle of the answer (finish_reason={reason})")


def usage_of(usage: Usage | None) -> TokenUsage | None:
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=None if prompt is None else prompt.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens if completion is None else completion.reasoning_tokens,
    )


def without_false_zero(usage: TokenUsage) -> TokenUsage:
    """The usage of an answer with reasoning. vLLM counts none where the chat template opened the thought: its parsers
    look for the opening token in what was generated (vllm/reasoning/basic_parsers.py, count_reasoning_tokens).
    """
    return usage if usage.reasoning_tokens else replace(usage, reasoning_tokens=None)


def parse_embeddings(data: bytes) -> EmbeddingResult:
    """POST /v1/embeddings; in the order of the texts, also where the server sorted otherwise.

    NaN stays NaN, however the server writes it: whether a vector is one, its reader looks.
    """
    answer = _decode(_embeddings_decoder, data, dialects.embeddings_of)
    ordered = sorted(answer.data, key=lambda item: item.index)
    return EmbeddingResult(
        embeddings=[_vector(item.embedding) for item in ordered],
        usage=usage_of(answer.usage) or TokenUsage(),
        model=answer.model,
    )


class _OfTokens(msgspec.Struct):
    data: list[list[float] | float]
    index: int = 0


class _Tokens(msgspec.Struct):
    data: list[_OfTokens]
    model: str = ""
    usage: Usage | None = None


_tokens_decoder = msgspec.json.Decoder(_Tokens)


def parse_tokenwise(data: bytes) -> MultiVectorResult:
    """POST /pooling, for tasks that give something for each token; a number for each is a vector of one."""
    answer = _decode(_tokens_decoder, data, dialects.tokenwise_of)
    ordered = sorted(answer.data, key=lambda item: item.index)
    return MultiVectorResult(
        embeddings=[[each if isinstance(each, list) else [each] for each in item.data] for item in ordered],
        usage=usage_of(answer.usage) or TokenUsage(),
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
    """POST /v1/rerank; best first, also where the server did not sort, and NaN last."""
    answer = _decode(_reranked_decoder, data, dialects.reranked_of)
    return RerankResult(
        results=tuple(sorted(answer.results, key=_place)),
        usage=usage_of(answer.usage) or TokenUsage(),
        model=answer.model,
    )


def _place(ranked: RankedDocument) -> float:
    return math.inf if math.isnan(ranked.relevance_score) else -ranked.relevance_score


def parse_models(data: bytes) -> list[tuple[str, int | None]]:
    """GET /v1/models: (name, max_model_len) of each."""
    return dialects.models_of(_json(data))


def window_of(models: Sequence[tuple[str, int | None]], name: str | None) -> int | None:
    """The limit of one of a server's models; of the first one where none is named.

    Of one that is not listed, or without its limit, as adapters are, that of the others, where they have the same.
    """
    own = models[0][1] if models and name is None else dict(models).get(name or "")
    limits = {limit for _, limit in models if limit is not None}
    return own if own is not None or len(limits) != 1 else limits.pop()


def parse_token_count(data: bytes) -> int:
    """POST /tokenize: how many tokens."""
    count = dialects.whole_of(_tokenized(data).get("count"), -1)
    if count < 0:
        raise _no_count(data)
    return count


def parse_tokens(data: bytes) -> list[int]:
    """POST /tokenize: the tokens' ids."""
    answer = _tokenized(data)
    tokens = answer.get("tokens")
    # Without a count it is not vLLM's: llama.cpp reads another field of the request, and finds no text in it.
    if "count" not in answer or not isinstance(tokens, list):
        raise _no_count(data)
    return list(tokens)


def parse_token_strings(data: bytes) -> list[str]:
    """POST /tokenize: the tokens as the vocabulary spells them."""
    strings = _tokenized(data).get("token_strs")
    if not isinstance(strings, list):
        raise _no_count(data)
    return list(map(str, strings))


def _tokenized(data: bytes) -> dict[str, Any]:
    answer = _json(data)
    return answer if isinstance(answer, dict) else {}


def _no_count(data: bytes) -> ServerError:
    return ServerError(f"this server does not count tokens as vLLM does; it sent {data[:80]!r}")
