"""What comes back from a request: GenerationResult, GenerationChunk, EmbeddingResult, RerankResult. Values only."""

from __future__ import annotations

from typing import Any

import msgspec


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


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A function the model wants called. ``arguments`` is JSON text as the model wrote it, valid or not."""

    name: str
    arguments: str
    id: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed tool call; pieces with the same ``index`` belong together."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


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


class GenerationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. The properties speak of the first choice; ``choices`` has all ``n``."""

    choices: tuple[Choice, ...]
    usage: TokenUsage
    request_id: str
    model: str
    max_tokens_lowered_to: int | None = None
    """What ``truncate_completion`` made of ``max_tokens``; None where it was sent as it was."""

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

    @property
    def is_empty(self) -> bool:
        """True for a chunk without content, such as the opening one, which only names the role."""
        content = self.text or self.reasoning or self.tool_calls or self.logprobs
        return not content and self.finish_reason is None and self.usage is None


class EmbeddingResult(msgspec.Struct, frozen=True, kw_only=True):
    """One vector per text, in order."""

    embeddings: list[list[float]]
    usage: TokenUsage
    model: str


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """How well one document fits the query."""

    index: int
    """Its position among the documents that were given."""
    relevance_score: float
    """A cross-encoder's own score, mostly from 0 to 1; of an embedding model the cosine, from -1 to 1."""


class RerankResult(msgspec.Struct, frozen=True, kw_only=True):
    """The documents that were asked for, best first."""

    results: tuple[RankedDocument, ...]
    usage: TokenUsage
    model: str
