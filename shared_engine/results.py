"""What comes back from a request: GenerationResult, GenerationChunk, EmbeddingResult, RerankResult. Values only."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec

from shared_engine.errors import VLLMError

Vector = TypeVar("Vector")

OnError = Literal["raise", "skip", "none"]
"""What one text that can't be embedded, or one document that can't be scored, does to the others: it ends them
(``raise``), it is left out (``skip``), or it has None (``none``)."""


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens counted by the engine for one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; None where the server does not say."""
    reasoning_tokens: int | None = None
    """Tokens of the answer that are reasoning; None where the server does not say."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed tool call; pieces with the same ``index`` belong together."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model wants called. ``arguments`` is JSON text as the model wrote it, valid or not."""

    name: str = ""
    arguments: str = ""
    id: str | None = None

    def extended(self, delta: ToolCallDelta) -> ToolCall:
        """The call as it is with one more of its pieces; ``ToolCall()`` is the call before its first."""
        return ToolCall(
            id=self.id or delta.id,
            name=self.name or delta.name or "",
            arguments=self.arguments + (delta.arguments or ""),
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the ``n`` answers to a request."""

    text: str
    index: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    logprobs: dict[str, Any] | None = None
    """As the server sent it (OpenAI's shape); None unless asked for."""
    additional_fields: dict[str, Any] | None = None
    """What else the server sent in this choice and its message, such as ``token_ids``; None where there is nothing."""


class GenerationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. The properties speak of the first choice; ``choices`` has all ``n``."""

    choices: tuple[Choice, ...]
    usage: TokenUsage
    request_id: str
    model: str
    max_tokens_lowered_to: int | None = None
    """What ``truncate_completion`` made of ``max_tokens``; None where it was sent as it was."""
    additional_fields: dict[str, Any] | None = None
    """What else the server sent beside the choices, such as ``prompt_logprobs``, ``prompt_token_ids``, ``metrics``."""
    raw: Any = None
    """All that the server sent, with ``keep_raw``."""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls

    @property
    def reasoning(self) -> str | None:
        return self.choices[0].reasoning

    @property
    def logprobs(self) -> dict[str, Any] | None:
        return self.choices[0].logprobs


class GenerationChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer. ``usage`` is set on the last chunk only, which carries no text."""

    text: str = ""
    index: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str | None = None
    logprobs: dict[str, Any] | None = None
    usage: TokenUsage | None = None
    request_id: str = ""
    model: str = ""
    max_tokens_lowered_to: int | None = None
    """As in GenerationResult; on the chunk that has the finish reason."""
    additional_fields: dict[str, Any] | None = None
    """Of the whole stream, put together: those of a choice on the chunk that has its finish reason, those beside the
    choices on the last chunk."""
    raw: list[Any] | None = None
    """With ``keep_raw``: the events that have come since the chunk before."""

    @property
    def is_empty(self) -> bool:
        """True for a chunk without content, such as the opening one, which only names the role."""
        content = self.text or self.reasoning or self.tool_calls or self.logprobs
        return not content and self.finish_reason is None and self.usage is None


class ItemFailure(msgspec.Struct, frozen=True):
    """What became of one text or document that has no answer."""

    index: int
    """Its position among those that were given."""
    error: VLLMError

    def __str__(self) -> str:
        return f"[{self.index}]: {self.error}"


class Embedded(msgspec.Struct, Generic[Vector], frozen=True, kw_only=True):
    """What was computed of each text, in order."""

    embeddings: list[Vector]
    """With ``on_error="none"`` None in the place of a text that failed; with ``"skip"`` without it."""
    usage: TokenUsage
    model: str
    failures: tuple[ItemFailure, ...] = ()
    """The texts without a vector, in order; none of them with ``on_error="raise"``."""

    @property
    def indices(self) -> list[int]:
        """Which texts have a vector, in order: with ``on_error="skip"`` those that ``embeddings`` are of."""
        failed = {failure.index for failure in self.failures}
        texts = len(self.embeddings) + (0 if None in self.embeddings else len(failed))
        return [index for index in range(texts) if index not in failed]


class EmbeddingResult(Embedded[list[float]], frozen=True, kw_only=True):
    """One vector per text, in order."""


class MultiVectorResult(Embedded[list[list[float]]], frozen=True, kw_only=True):
    """One vector for each token of a text, texts and tokens in order. Which tokens have one, the model decides."""


class SparseResult(Embedded[dict[int, float]], frozen=True, kw_only=True):
    """One sparse vector per text, in order: the weights that are not 0, by token id."""


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """How well one document fits the query."""

    index: int
    """Its position among the documents that were given."""
    relevance_score: float
    """A cross-encoder's own score, mostly from 0 to 1; of an embedding model the cosine, from -1 to 1. With
    ``on_error="none"`` None of a document that failed."""


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """The documents that were asked for, best first."""

    results: tuple[RankedDocument, ...]
    """With ``on_error="none"`` those that failed come last, as far as ``top_n`` has room for them."""
    usage: TokenUsage
    model: str
    failures: tuple[ItemFailure, ...] = ()
    """The documents without a score, in order; none of them with ``on_error="raise"``."""

    @property
    def indices(self) -> list[int]:
        """Which documents ``results`` are of, best first, without those that failed."""
        failed = {failure.index for failure in self.failures}
        return [each.index for each in self.results if each.index not in failed]
