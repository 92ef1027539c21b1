"""GenerationParams: the sampling parameters of one request, and what they say to a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_engine.errors import InvalidInputError
from shared_engine.validation import describe_invalid

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Names of the chat template's variable that turns thinking on and off."""


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


def template_variables(params: GenerationParams) -> dict[str, Any]:
    """The variables that a request sets in the chat template."""
    effort, thinks = params.reasoning_effort, params.enable_thinking
    if thinks is None and effort is not None:
        thinks = effort != "none"  # as vLLM does, which says it under the first of the two names only
    # Templates have two names for it, and parsers heed both; vLLM leaves out what a template does not know.
    switch = {} if thinks is None else dict.fromkeys(THINKING_SWITCHES, thinks)
    own = {} if effort is None else {"reasoning_effort": effort}
    return {**own, **switch, **(params.chat_template_kwargs or {})}
