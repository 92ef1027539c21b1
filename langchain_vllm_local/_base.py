"""What ChatVLLM and VLLM share: settings, defaults of requests, the engine behind them, and what traces show.

Knows nothing of messages or results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.language_models.base import LangSmithParams
from langchain_core.runnables.config import RunnableConfig, get_config_list
from pydantic import PrivateAttr, model_validator

from langchain_vllm_local._convert import PROVIDER
from langchain_vllm_local._errors import langchain_errors
from shared_engine.engine import DEFAULT_MAX_NUM_SEQS, Engine
from shared_engine.errors import InvalidInputError
from shared_engine.results import GenerationParams
from shared_engine.settings import SECRET, EngineFields, EngineSettings

if TYPE_CHECKING:
    from typing import Self

# Other names that LangChain's models give to the same things.
_ALIASES = {
    "model_name": "model",
    "max_completion_tokens": "max_tokens",
    "stop_sequences": "stop",
    "request_timeout": "timeout",
}
# Defaults of requests beyond those that EngineFields has; GenerationParams knows their ranges.
_REQUEST_FIELDS = (
    "min_p", "presence_penalty", "frequency_penalty", "stop", "seed", "n", "logprobs", "extra_body",
)  # fmt: skip


class EngineBacked(EngineFields):
    """Fields and behaviour of a model whose requests go to a shared engine; mixed into LangChain's base classes.

    Settings that were not given are read from the environment once, on construction, and are fields like the others
    from then on: copies, pickles and caches then speak of the same engine.
    """

    min_p: float | None = None
    """Default for requests: drop tokens less likely than this share of the most likely one."""
    presence_penalty: float | None = None
    """Default for requests: above 0 discourages tokens that were generated at all."""
    frequency_penalty: float | None = None
    """Default for requests: above 0 discourages tokens by how often they were generated."""
    stop: str | list[str] | None = None
    """Default for requests: stop before any of these strings. Alias: ``stop_sequences``."""
    seed: int | None = None
    """Default for requests: makes sampling repeatable."""
    n: int | None = None
    """Default for requests: number of answers to generate; more than one can't be streamed."""
    logprobs: int | bool | None = None
    """Default for requests. True: log probability of each token; a number, or ``top_logprobs``: also that many
    alternatives."""
    extra_body: dict[str, Any] | None = None
    """Default for requests: further fields of the body, such as ``{"chat_template_kwargs": {...}}``. Those of a call
    are added, and win."""
    streaming: bool | None = None
    """True: ``invoke`` streams too, so that callbacks see each token; False: nothing is ever streamed."""

    _engine: Engine = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _replace_aliases(cls, values: Any) -> Any:
        return with_own_names(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _attach(self) -> Self:
        self._use(self.engine_settings())
        return self

    def _use(self, settings: EngineSettings) -> None:
        """Make ``settings`` this object's own. Starts nothing."""
        GenerationParams(**self._request_defaults())  # refuses values out of range
        self.__dict__.update({name: getattr(settings, name) for name in EngineFields.model_fields})
        self._engine = Engine(settings)

    def _current_settings(self, **changes: Any) -> EngineSettings:
        values = {name: getattr(self, name) for name in EngineFields.model_fields}
        if "api_key" not in self.model_fields_set and values["api_key"] is None:
            del values["api_key"]  # after unpickling: of this process's environment
        return EngineSettings(**{**values, **changes})

    # ---- the engine

    @property
    def engine(self) -> Engine:
        """The engine behind this object: status, stats, evict, shutdown, count_tokens, ..."""
        return self._engine

    def warmup(self) -> None:
        """Return when the engine is ready, starting it if need be."""
        with langchain_errors():
            self._engine.warmup()

    async def awarmup(self) -> None:
        """See ``warmup``."""
        with langchain_errors():
            await self._engine.awarmup()

    @property
    def model_name(self) -> str | None:
        """The same as ``model``, under the name that LangChain's tools look for."""
        return self.model

    # ---- one request

    def _request_defaults(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _REQUEST_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def _params(
        self, stop: Sequence[str] | None, call: Mapping[str, Any], *, stream: bool = False, **body: Any
    ) -> GenerationParams:
        """Parameters of one request: the call's over the constructor's. What neither has is up to the engine.

        Args:
            call: keywords of the call, under LangChain's names or ours.
            body: further fields of the request body.

        Raises:
            InvalidInputError: a parameter is unknown, out of range, or can't be had in this way.
        """
        given = with_own_names(call)
        given.pop("stream", None)  # core's own switch between invoke and stream
        body.update(self._other_model(given.pop("model", None)))
        defaults = self._request_defaults()
        values = {**defaults, **given}
        if stop is not None:
            values["stop"] = list(stop) if not isinstance(stop, str) else stop
        extra_body = {**(defaults.get("extra_body") or {}), **(given.get("extra_body") or {}), **body}
        values["extra_body"] = extra_body or None
        params = GenerationParams(**values)
        if stream and (params.n or 1) > 1:
            raise InvalidInputError(f"n = {params.n}: one answer can be streamed; for more use invoke or generate")
        return params

    def _other_model(self, model: str | None) -> dict[str, Any]:
        """The body's field for a call that names a model."""
        if model is None or model == self.model:
            return {}
        if self._engine.settings.is_remote:
            return {"model": model}
        name = type(self).__name__
        raise InvalidInputError(
            f"model = {model!r}: a local engine serves one model, here {self.model!r}; use {name}(model={model!r})"
        )

    def _configs(self, config: RunnableConfig | list[RunnableConfig] | None, count: int) -> list[RunnableConfig]:
        """One config for each of ``count`` inputs, which keep the engine full where the caller sets no limit.

        Core's own default is one thread for each CPU, and a few; more than the engine takes at once would only queue.
        """
        limit = int(self.engine_args.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS))
        configs = get_config_list(config, count)
        return [{**each, "max_concurrency": each.get("max_concurrency") or limit} for each in configs]

    # ---- what traces, caches and files show

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "VLLM_API_KEY"}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that was set, except secrets."""
        names = [name for name in (*EngineFields.model_fields, *_REQUEST_FIELDS) if name not in SECRET]
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in names}
        return {
            name: value
            for name, value in values.items()
            if value != fields[name].get_default(call_default_factory=True)
        }

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
            "ls_stop": [stops] if isinstance(stops, str) else stops,
        }
        return cast("LangSmithParams", {name: value for name, value in params.items() if value not in (None, [])})

    # ---- copies, assignments, other processes

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with ``update`` on top, checked as on construction."""
        copied = super().model_copy(update=update, deep=deep)
        copied._forget_description()
        copied._use(copied._current_settings())
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigning a setting has effect on the calls that follow, and is refused if construction would refuse it."""
        if name in EngineFields.model_fields:
            self._use(self._current_settings(**{name: value}))
            self.model_fields_set.add(name)
        else:
            super().__setattr__(name, value)
        self._forget_description()

    def _forget_description(self) -> None:
        # Core computes it once, and makes cache keys of it: after a change it would be the other model's.
        self.__dict__.pop("_serialized", None)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": {}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._use(self._current_settings())


def with_own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with LangChain's other names for a setting or parameter replaced by ours.

    Raises:
        InvalidInputError: a value is given under two names.
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        own = _ALIASES.get(name, name)
        if own in named:
            other = next(alias for alias in (own, *_ALIASES) if alias != name and alias in values)
            raise InvalidInputError(f"{name} and {other} are two names of {own}: pass one of them")
        named[own] = value
    alternatives = named.pop("top_logprobs", None)
    if alternatives is not None and named.get("logprobs") is not False:
        named["logprobs"] = alternatives
    return named
