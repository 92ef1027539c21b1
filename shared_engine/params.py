"""The parameters of a request: each declared once, and merged by one rule.

A class of fields for each place that has them: the settings and every request (``DefaultFields``), requests and the
adapters' language models (``SamplingFields``), requests and their chat models (``ChatFields``), requests alone; and
``CallParams``, which say how a call is made and are in no body. A field is sent under its own name unless
request/bodies.py says otherwise: a new one is one line here, and its test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from shared_engine.declared import UNSET, Decides, Setting
from shared_engine.errors import InvalidInputError
from shared_engine.validation import Headers, describe_invalid, text_values

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Names of the chat template's variable that turns thinking on and off."""
_END = 1 << 63
"""vLLM's processes send each other whole numbers of 64 bits."""


def _none_is_empty(stop: str | list[str] | None) -> str | list[str] | None:
    if isinstance(stop, list) and "" in stop:
        raise ValueError("an empty string can't be stopped at")
    return stop


class DefaultFields(BaseModel):
    """Parameters whose defaults are settings, with an environment variable each."""

    temperature: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False), Setting("VLLM_DEFAULT_TEMPERATURE", Decides.REQUESTS)
    ] = None
    """Randomness; 0 is greedy."""
    top_p: Annotated[float | None, Field(gt=0, le=1), Setting("VLLM_DEFAULT_TOP_P", Decides.REQUESTS)] = None
    """Sample from the smallest set of tokens whose probability reaches this."""
    top_k: Annotated[int | None, Field(ge=-1, lt=_END), Setting("VLLM_DEFAULT_TOP_K", Decides.REQUESTS)] = None
    """Sample from this many most likely tokens; 0 or -1 for all."""
    max_tokens: Annotated[int | None, Field(ge=1, lt=_END), Setting("VLLM_DEFAULT_MAX_TOKENS", Decides.REQUESTS)] = None
    """Generate at most this many tokens; by default up to the model's limit."""
    repetition_penalty: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False), Setting("VLLM_DEFAULT_REPETITION_PENALTY", Decides.REQUESTS)
    ] = None
    """Above 1 discourages tokens of the prompt and the answer so far."""


class SamplingFields(BaseModel):
    """Parameters whose defaults an adapter's model may hold."""

    min_p: float | None = Field(default=None, ge=0, le=1)
    """Drop tokens less likely than this share of the most likely one."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Above 0 discourages tokens that were generated at all."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Above 0 discourages tokens by how often they were generated."""
    stop: Annotated[str | list[str] | None, AfterValidator(_none_is_empty)] = None
    """Stop before any of these strings."""
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=_END)]] | None = None
    """Stop at any of these tokens."""
    include_stop_str_in_output: bool | None = None
    """Keep the string of ``stop`` at the end of the answer."""
    min_tokens: int | None = Field(default=None, ge=0, lt=_END)
    """Generate at least this many tokens before the model's end, or one of ``stop_token_ids``, may come."""
    ignore_eos: bool | None = None
    """Go on after the model's end, up to ``max_tokens``; for measurements."""
    bad_words: list[Annotated[str, Field(min_length=1)]] | None = None
    """Words that are never generated."""
    logit_bias: dict[Annotated[int, Field(ge=0, lt=_END)], Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Token id -> what is added to its logit, from -100 (never) to 100; vLLM cuts off what is beyond."""
    prompt_logprobs: int | None = Field(default=None, ge=-1, lt=_END)
    """The log probability of each token of the prompt, and so many alternatives (-1: all). Not of a stream."""
    return_token_ids: bool | None = None
    """The ids of the tokens of prompt and answer, too: ``prompt_token_ids``, ``token_ids``."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text, as vLLM does by default."""
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, lt=_END)
    """Use only so many tokens of the prompt, its last ones; -1: as many as fit."""
    priority: int | None = Field(default=None, ge=-_END, lt=_END)
    """Lower is earlier; on an engine with ``engine_args={"scheduling_policy": "priority"}``."""
    seed: int | None = Field(default=None, ge=-_END, lt=_END)
    """Makes sampling repeatable for this request."""
    lora: str | None = Field(default=None, min_length=1)
    """Answer with this LoRA adapter: a name of ``lora_adapters``, or of ``Engine.load_adapter``."""
    logprobs: int | bool | None = None
    """The log probability of each token (True); with a number also that many alternatives."""
    structured_outputs: dict[str, Any] | None = None
    """vLLM's constraints on the answer: one of ``{"regex": ...}``, ``{"choice": [...]}``, ``{"grammar": ...}`` (EBNF),
    ``{"json": schema}``, ``{"structural_tag": ...}``."""
    extra_body: dict[str, Any] | None = None
    """Further fields of the request's body, passed on as they are; they win over all others. Those of a call are added
    to the defaults. What has a parameter's name here for a form, thinking, the model or ``n`` is that parameter."""


class ChatFields(BaseModel):
    """Parameters that go through the chat template: refused where a text is sent without one."""

    enable_thinking: bool | None = None
    """Chat only, for a model whose template can switch: think before the answer (True), or answer at once (False)."""
    reasoning_effort: str | None = None
    """Chat only, for a model that knows it: ``none``, ``low``, ``medium``, ``high``, ... (vLLM checks it)."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Chat only: further variables of the chat template."""


class CallParams(BaseModel):
    """How one call is made, whatever it asks for.

    Raises:
        InvalidInputError: on construction, for a value out of range or an unknown name; names the nearest known one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: float | None = Field(default=None, gt=0)
    """Seconds that all of this call may take: the engine's start, every try, all of the answer; in a batch, each
    item from its sending on. The setting of this name is the limit of silence instead, which holds beside it."""
    max_retries: int | None = Field(default=None, ge=0)
    """How often a request of this call is tried again; None: as the setting of this name says."""
    extra_headers: Annotated[Headers, BeforeValidator(text_values)] = UNSET
    """HTTP headers of this call's requests to a remote server, beside the setting ``default_headers`` and instead of
    those of the same name. Nothing to a local engine. Given as pydantic's ``SecretStr``, a value is not shown by the
    frameworks' traces either."""

    session: str | None = Field(default=None, min_length=1)
    """Of several ``base_url``: requests of one session go to one server, so that it finds the beginning in its prefix
    cache. Default: a conversation is told by its beginning, up to the first message of the user's. Sent as the
    header ``X-Session-ID``, by which routers tell sessions. Nothing to a local engine."""

    if not TYPE_CHECKING:  # checkers and editors see the fields instead

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as exc:
                known = type(self).model_fields
                raise InvalidInputError(describe_invalid(exc, known, "parameter", ("extra_headers",))) from None


class ContextFields(BaseModel):
    """What is to be seen to before a request for an answer is sent."""

    check_context: bool | None = None
    """Count the prompt before anything is sent, and refuse what does not fit; None: as the setting says."""
    truncate_completion: bool | None = None
    """Lower ``max_tokens`` to what the prompt leaves; None: as the setting says."""


class SchemaFields(BaseModel):
    """What is done with a JSON schema before a request is sent that holds its answer to it."""

    show_schema: bool | None = None
    """Say the schema in the prompt of a chat; None: as the setting says."""
    schema_max_length: int | None = Field(default=None, ge=1)
    """The most characters of a string for which the schema has no maxLength; None: as the setting says."""
    schema_max_items: int | None = Field(default=None, ge=1)
    """The most entries of an array or a dict for which the schema has no limit; None: as the setting says."""


class AnswerFields(BaseModel):
    """What is kept of an answer."""

    keep_raw: bool | None = None
    """Keep all that the server sent as ``raw``: the JSON of the answer; of a stream that of its events."""


class GenerationParams(
    DefaultFields, SamplingFields, ChatFields, ContextFields, SchemaFields, AnswerFields, CallParams
):
    """Sampling parameters of one request, in vLLM's names (vllm/sampling_params.py).

    None means: not sent, so the engine's settings decide, then the model's own generation_config.

    Raises:
        InvalidInputError: on construction, for a value out of range or an unknown name; names the nearest known one.
    """

    n: int | None = Field(default=None, ge=1, lt=_END)
    """Number of choices to generate."""
    model: str | None = Field(default=None, min_length=1)
    """The model that answers, as OpenAI's protocol has it: the engine's own, or an adapter as by ``lora``; of a remote
    server any one that it has."""
    continue_final_message: bool | None = None
    """Chat only: the answer goes on with the last message, the assistant's, and has only what is new."""
    response_format: dict[str, Any] | None = None
    """OpenAI's response_format: ``{"type": "json_schema", ...}``, ``{"type": "json_object"}``."""

    @field_validator("response_format", mode="before")
    @classmethod
    def _refuse_a_class(cls, value: Any) -> Any:
        if isinstance(value, type):
            raise ValueError(
                'must be {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}; for a class there are '
                "ChatVLLM.with_structured_output (LangChain) and VLLM.structured_predict (LlamaIndex)"
            )
        return value

    @property
    def given(self) -> dict[str, Any]:
        """What was given to the constructor, by name; an explicit None too."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    def merged(self, *layers: Mapping[str, Any]) -> GenerationParams:
        """These parameters with ``layers`` on top, the last one highest; see ``merge_parameters``."""
        layers = tuple(layer for layer in layers if layer)
        return GenerationParams(**merge_parameters(self.given, *layers)) if layers else self


def template_variables(params: GenerationParams) -> dict[str, Any]:
    """The variables that a request sets in the chat template."""
    effort, thinks = params.reasoning_effort, params.enable_thinking
    if thinks is None and effort is not None:
        thinks = effort != "none"  # as vLLM does, which says it under the first of the two names only
    # Templates have two names for it, and parsers read both; vLLM leaves out what a template does not know.
    switch = {} if thinks is None else dict.fromkeys(THINKING_SWITCHES, thinks)
    own = {} if effort is None else {"reasoning_effort": effort}
    return {**own, **switch, **(params.chat_template_kwargs or {})}


# ---- one rule for all that is given

_THINKING = ("enable_thinking", "reasoning_effort")
_FORMS = ("response_format", "structured_outputs")
_MODELS = ("lora", "model")
_OF_BODY = ("chat_template_kwargs", "extra_body")
_JOINED = (*_OF_BODY, "extra_headers")
_TAKEN_FROM_BODY = (*_FORMS, *_THINKING, *_MODELS, "n")
_RELATED = frozenset((*_THINKING, *_FORMS, *_MODELS, *_JOINED))


def merge_parameters(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by name, of which a later layer (a call) wins over an earlier one (a model's or an engine's defaults).

    What a layer has replaces what contradicts it below, also under another name: two parameters hold an answer to a
    form, two name the model, and three switch thinking. ``chat_template_kwargs``, ``extra_body`` and ``extra_headers``
    are joined. None takes a value away.

    Raises:
        InvalidInputError: one layer constrains the answer, or names the model, twice.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        # Most layers only give numbers, once for each request: they are not looked at in detail.
        merged = {**merged, **layer} if _RELATED.isdisjoint(layer) else _over(merged, _with_own_fields(layer))
    return merged


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    if _says_thinking(above):
        below = {name: value for name, value in below.items() if name not in _THINKING}
        variables = below.pop("chat_template_kwargs", None) or {}
        others = {name: value for name, value in variables.items() if name not in THINKING_SWITCHES}
        below |= {"chat_template_kwargs": others} if others else {}
    for names, what in ((_FORMS, "constrain the answer"), (_MODELS, "name the model that answers")):
        given = [name for name in names if above.get(name) is not None]
        if len(given) > 1:
            raise InvalidInputError(f"{' and '.join(given)} both {what}: pass one of them")
        if given:
            below = {name: value for name, value in below.items() if name not in names}
    joined = {
        name: {**below[name], **above[name]}
        for name in _JOINED
        if isinstance(below.get(name), Mapping) and isinstance(above.get(name), Mapping)
    }
    return {**below, **above, **joined}


def _with_own_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``extra_body`` has under the name of a parameter of ours is that parameter."""
    body = values.get("extra_body")
    if not isinstance(body, Mapping) or not body.keys() & {*_TAKEN_FROM_BODY, "chat_template_kwargs"}:
        return dict(values)
    own = {name: body[name] for name in _TAKEN_FROM_BODY if name in body}
    variables = {**_template_kwargs(values), **_template_kwargs(body, "extra_body.")}
    rest = {name: value for name, value in body.items() if name not in own and name != "chat_template_kwargs"}
    return {
        **{name: value for name, value in values.items() if name not in _OF_BODY},
        **own,
        **({"chat_template_kwargs": variables} if variables else {}),
        **({"extra_body": rest} if rest else {}),
    }


def _says_thinking(values: Mapping[str, Any]) -> bool:
    variables = _template_kwargs(values)
    return any(values.get(name) is not None for name in _THINKING) or any(
        name in variables for name in THINKING_SWITCHES
    )


def _template_kwargs(values: Mapping[str, Any], prefix: str = "") -> Mapping[str, Any]:
    variables = values.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise InvalidInputError(f"{prefix}chat_template_kwargs = {variables!r:.80}: must be a dict")
    return variables
