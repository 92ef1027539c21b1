"""What ChatVLLM and VLLM share beyond the engine: defaults of requests, parameters of calls, tokens of texts, and what
traces show.

Knows nothing of messages or results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from langchain_core.language_models.base import LangSmithParams
from pydantic import model_validator

from langchain_vllm_local._engine_model import PROVIDER, LangChainModel
from langchain_vllm_local._errors import langchain_errors
from shared_engine.adapting.framework_model import GenerationModel, without_aliases
from shared_engine.declared import UNSET, Alias
from shared_engine.errors import InvalidInputError
from shared_engine.params import GenerationParams, merge_parameters
from shared_engine.settings import SECRET, EngineFields

if TYPE_CHECKING:
    from langchain_core.runnables.base import RunnableSerializable
    from langchain_core.runnables.utils import AnyConfigurableField

# Other names that LangChain's models give to the same things.
_ALIASES = {**LangChainModel._aliases, "max_completion_tokens": "max_tokens", "stop_sequences": "stop"}


class LanguageModel(LangChainModel, GenerationModel):
    """Fields and behaviour of a language model whose requests go to a shared engine."""

    n: int | None = None
    """Default for requests: number of answers to generate; more than one can't be streamed."""
    streaming: bool | None = None
    """True: ``invoke`` streams too, so that callbacks see each token; False: nothing is ever streamed."""
    if TYPE_CHECKING:  # of _ALIASES
        max_completion_tokens: Alias[int | None] = UNSET
        stop_sequences: Alias[str | list[str] | None] = UNSET
        stream_usage: Alias[bool | None] = UNSET
        custom_get_token_ids: Callable[[str], list[int]] | None = None  # core's

    _aliases: ClassVar[Mapping[str, str]] = _ALIASES
    _request_fields: ClassVar[tuple[str, ...]] = (*GenerationModel._request_fields, "n")

    @model_validator(mode="before")
    @classmethod
    def _replace_aliases(cls, values: Any) -> Any:
        return with_own_names(values) if isinstance(values, Mapping) else values

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Any, Any]:
        """See RunnableSerializable. LangChain's other names for a field are taken, too."""
        with langchain_errors():
            fields = with_own_names(kwargs)
        configurable: RunnableSerializable[Any, Any] = super().configurable_fields(**fields)  # type: ignore[misc]
        return configurable

    # ---- one request

    def _params(self, stop: Sequence[str] | None, call: Mapping[str, Any], *, stream: bool = False) -> GenerationParams:
        """Parameters of one request: the call's over the constructor's. The engine decides the rest.

        Args:
            call: keywords of the call, under LangChain's names or ours.

        Raises:
            InvalidInputError: a parameter is unknown, out of range, or can't be combined with the others.
        """
        given = with_own_names(call)
        given.pop("stream", None)  # core's own switch between invoke and stream
        options = given.get("stream_options")
        if isinstance(options, Mapping) and options.keys() <= {"include_usage"}:
            del given["stream_options"]
        if stop is not None:
            given["stop"] = list(stop) if not isinstance(stop, str) else stop
        params = GenerationParams(**merge_parameters(self._request_defaults(), given))
        if stream and (params.n or 1) > 1:
            raise InvalidInputError(f"n = {params.n}: one answer can be streamed; for more use invoke or generate")
        return params

    # ---- tokens

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text, exactly; without an engine where vLLM exports the tokenizer (Engine.count_tokens)."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        with langchain_errors():
            return self.engine.count_tokens(text)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text by itself: without special ones, which ``get_num_tokens`` counts (Engine.tokenize)."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with langchain_errors():
            return self.engine.tokenize(text)

    # ---- what traces, caches and files show

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that was set, except secrets."""
        defaults = _shown_defaults(type(self))
        values = {name: getattr(self, name) for name in defaults}
        return {name: value for name, value in values.items() if value != defaults[name]}

    def _ls_params(
        self, model_type: Literal["chat", "llm"], stop: list[str] | None, call: Mapping[str, Any]
    ) -> LangSmithParams:
        """Standard parameters for tracing, as they are for this call."""
        with langchain_errors():
            given = with_own_names(call)
        stops = stop if stop is not None else self.stop
        params = {
            "ls_provider": PROVIDER,
            "ls_model_type": model_type,
            "ls_model_name": given.get("model", self.model),
            "ls_temperature": given.get("temperature", self.temperature),
            "ls_max_tokens": given.get("max_tokens", self.max_tokens),
            "ls_stop": [stops] if isinstance(stops, str) else stops or None,
        }
        return cast("LangSmithParams", {name: value for name, value in params.items() if value is not None})


def with_own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with LangChain's other names for a setting or parameter replaced by ours.

    Raises:
        InvalidInputError: a value is given under two names.
    """
    named = without_aliases(values, _ALIASES)
    named.pop("stream_usage", None)  # ChatOpenAI's; the usage always comes
    alternatives = named.pop("top_logprobs", None)
    if alternatives is not None and named.get("logprobs") is not False:
        named["logprobs"] = alternatives
    return named


@functools.cache
def _shown_defaults(kind: type[LanguageModel]) -> dict[str, Any]:
    """What a model shows, by name, with its default: all fields of engine and requests, except secrets."""
    names = [name for name in (*EngineFields.model_fields, *kind._request_fields) if name not in SECRET]
    return {name: kind.model_fields[name].get_default(call_default_factory=True) for name in names}
