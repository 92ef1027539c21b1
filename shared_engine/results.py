"""What a request asks for and what comes back: GenerationParams in, GenerationResult and GenerationChunk out.

Values only: nothing here talks to a server or knows a wire format.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_engine.errors import InvalidInputError

# What the classes are called from which people come, for the same thing.
_OTHER_NAMES = {
    "api_base": "base_url", "api_url": "base_url", "openai_api_base": "base_url", "openai_api_key": "api_key",
    "request_timeout": "timeout", "max_new_tokens": "max_tokens", "num_predict": "max_tokens",
    "max_completion_tokens": "max_tokens", "num_ctx": "max_model_len", "keep_alive": "idle_ttl_s",
    "vllm_kwargs": "engine_args", "additional_kwargs": "extra_body", "model_kwargs": "extra_body",
    "stop_sequences": "stop", "thinking": "enable_thinking", "guided_json": "structured_outputs",
    "model_name": "model", "model_path": "model", "cache_dir": "download_dir", "normalize": "extra_body",
}  # fmt: skip


class GenerationParams(BaseModel):
    """Sampling parameters of one request, in vLLM's names (vllm/sampling_params.py).

    None means: not sent, so the engine's settings decide, then the model's own generation_config.

    Raises:
        InvalidInputError: on construction, for a value out of range or an unknown name; names the nearest known one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(None, ge=0)
    """Randomness; 0 is greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the smallest set of tokens whose probability reaches this."""
    top_k: int | None = Field(None, ge=-1)
    """Sample from this many most likely tokens; 0 or -1 for all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Drop tokens less likely than this share of the most likely one."""
    max_tokens: int | None = Field(None, ge=1)
    """Generate at most this many tokens; None: up to the model's limit."""
    repetition_penalty: float | None = Field(None, gt=0)
    """Above 1 discourages tokens of the prompt and the answer so far."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0 discourages tokens that were generated at all."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Above 0 discourages tokens by how often they were generated."""
    stop: str | list[str] | None = None
    """Stop before any of these strings."""
    seed: int | None = None
    """Makes sampling repeatable for this request."""
    n: int | None = Field(None, ge=1)
    """Number of choices to generate."""
    logprobs: int | bool | None = None
    """True: log probability of each token; a number: also that many alternatives."""
    response_format: dict[str, Any] | None = None
    """OpenAI's response_format: ``{"type": "json_schema", ...}``, ``{"type": "json_object"}``."""
    structured_outputs: dict[str, Any] | None = None
    """vLLM's constraints on the answer: one of ``{"regex": ...}``, ``{"choice": [...]}``, ``{"grammar": ...}`` (EBNF),
    ``{"json": schema}``, ``{"structural_tag": ...}``."""
    enable_thinking: bool | None = None
    """Chat only, for a model whose template can switch: False to answer at once, True to think before."""
    reasoning_effort: str | None = None
    """Chat only, for a model that knows it: ``none``, ``low``, ``medium``, ``high``, ... (vLLM checks it)."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Chat only: further variables of the chat template."""
    extra_body: dict[str, Any] | None = None
    """Further fields of the request body, passed on as they are; they win over all others."""

    if not TYPE_CHECKING:  # checkers and editors see the fields instead

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as exc:
                raise InvalidInputError(describe_invalid(exc, type(self).model_fields, "parameter")) from None

    def merged(self, overrides: Mapping[str, Any]) -> GenerationParams:
        """These parameters with ``overrides`` on top; checks them as the constructor does."""
        if not overrides:
            return self
        return GenerationParams(**{**self.model_dump(exclude_unset=True), **overrides})


def say_unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """That there is no ``kind`` (setting, parameter) of that name, and which one may be meant."""
    names = sorted(known)
    near = _OTHER_NAMES.get(name)
    if near not in names:
        near = next(iter(difflib.get_close_matches(name, names, n=1)), None)
    return f"unknown {kind} {name!r}; " + (f"did you mean {near!r}?" if near else f"known: {', '.join(names)}")


def describe_invalid(
    exc: ValidationError,
    known: Iterable[str],
    kind: str,
    secret: Iterable[str] = (),
    sources: Mapping[str, str] | None = None,
) -> str:
    """Say which ``kind`` (field) is wrong, with which value, and what is allowed; secret values are left out.

    Args:
        known: the names there are, to offer the nearest one for an unknown name.
        sources: for a value that came from an environment variable, its name.
    """
    lines: list[str] = []
    for error in exc.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in error["loc"]) or kind
        field = str(error["loc"][0]) if error["loc"] else ""
        label = f"{name} (from {sources[field]})" if sources and field in sources else name
        if error["type"] == "extra_forbidden":
            lines.append(say_unknown(kind, name, known))
            continue
        message = error["msg"].removeprefix("Value error, ")
        if not field:  # about the whole, whose input may hold a secret
            lines.append(message)
        elif field in secret:
            lines.append(f"{label}: {message}")
        else:
            lines.append(f"{label} = {error['input']!r}: {message}")
    return "; ".join(dict.fromkeys(lines))


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

    @property
    def is_empty(self) -> bool:
        """True for a chunk that tells nothing, such as the opening one, which only names the role."""
        said = self.text or self.reasoning or self.tool_calls or self.logprobs
        return not said and self.finish_reason is None and self.usage is None


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
