"""What the adapters' classes share: the engine's settings and a request's defaults as fields, the engine behind them,
copies, assignments and pickles.

Mixed into the frameworks' base classes, which are pydantic models. Knows no framework, and nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from shared_engine.engine import Engine
from shared_engine.errors import InvalidInputError, SettingsError
from shared_engine.params import ChatFields, DefaultFields, GenerationParams, SamplingFields
from shared_engine.results import OnError
from shared_engine.settings import SECRET, EngineFields, EngineSettings
from shared_engine.validation import say_unknown

if TYPE_CHECKING:
    from typing import Self


class EngineModel(EngineFields):
    """An object whose requests go to a shared engine.

    Settings that were not given are read from the environment once, on construction, and are fields like the others
    from then on: copies, pickles and caches then speak of the same engine.
    """

    _aliases: ClassVar[Mapping[str, str]] = {}
    """A framework's other names for a setting, which the constructor takes too."""
    _engine: Engine = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _replace_aliases(cls, values: Any) -> Any:
        return without_aliases(values, cls._aliases) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _attach(self) -> Self:
        self._use(self.engine_settings())
        return self

    def _use(self, settings: EngineSettings) -> None:
        """Make ``settings`` this object's own. Starts nothing."""
        self.__dict__.update({name: getattr(settings, name) for name in EngineFields.model_fields})
        self._engine = Engine(settings)

    def _current_settings(self, **changes: Any) -> EngineSettings:
        values = {name: getattr(self, name) for name in EngineFields.model_fields}
        for name in SECRET:
            if name not in self.model_fields_set and values[name] is None:
                del values[name]  # after unpickling: of this process's environment
        return EngineSettings(**{**values, **changes})

    # ---- the engine

    @property
    def engine(self) -> Engine:
        """The engine behind this object: status, stats, evict, shutdown, count_tokens, ..."""
        return self._engine

    def warmup(self) -> None:
        """Return when the engine is ready, starting it if need be."""
        self._engine.warmup()

    async def awarmup(self) -> None:
        """See ``warmup``."""
        await self._engine.awarmup()

    # ---- copies, assignments, other processes

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with ``update`` on top, checked as on construction."""
        changes = without_aliases(update or {}, self._aliases)
        unknown = [name for name in changes if name not in type(self).model_fields]
        if unknown:
            raise SettingsError("; ".join(say_unknown("setting", name, type(self).model_fields) for name in unknown))
        copied = super().model_copy(update={name: self._checked(name, changes[name]) for name in changes}, deep=deep)
        copied._use(copied._current_settings())
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigning a setting has effect on the calls that follow, and is refused if construction would refuse it."""
        if name in EngineFields.model_fields:
            self._use(self._current_settings(**{name: value}))
            self.model_fields_set.add(name)
        else:
            super().__setattr__(name, self._checked(name, value))

    def _checked(self, name: str, value: Any) -> Any:
        """``value`` for a field that our classes have beside the engine's settings, as construction would take it."""
        checker = _checker(type(self), name)
        if checker is None:
            return value
        try:
            return checker.validate_python(value)
        except ValidationError as exc:
            reasons = "; ".join(error["msg"] for error in exc.errors())
            raise SettingsError(f"{name} = {value!r:.80}: {reasons}") from None

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "__pydantic_private__": {}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(self._completed(state))
        self._use(self._current_settings())

    @classmethod
    def _completed(cls, state: dict[Any, Any]) -> dict[Any, Any]:
        """A pickle's state with the defaults of fields that it has not: an earlier release made it, as where the
        workers of a queue are brought up to date before those who send them work.
        """
        left_out = {
            name: field.get_default(call_default_factory=True)
            for name, field in cls.model_fields.items()
            if name not in state["__dict__"]
        }
        return {**state, "__dict__": {**left_out, **state["__dict__"]}}


class GenerationModel(EngineModel, SamplingFields):
    """An object that asks for text: SamplingFields are defaults of its requests, beside those among the settings."""

    _request_fields: ClassVar[tuple[str, ...]] = tuple(SamplingFields.model_fields)

    def _use(self, settings: EngineSettings) -> None:
        GenerationParams(**self._request_defaults())  # refuses values out of range
        super()._use(settings)
        self._hold_seed()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._request_fields:
            GenerationParams(**{**self._request_defaults(), name: value})
        super().__setattr__(name, value)
        if name == "seed":
            self._hold_seed()

    def _hold_seed(self) -> None:
        """With ``reproducible`` the seed given here is that of every request: a call's does not replace it."""
        if self.seed is not None:
            self._engine.reproducible_seed = self.seed

    def _request_defaults(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self._request_fields}
        return {name: value for name, value in values.items() if value is not None}


class ChatModel(GenerationModel, ChatFields):
    """An object that asks for chat: the variables of chat templates have defaults, too."""

    _request_fields: ClassVar[tuple[str, ...]] = (*SamplingFields.model_fields, *ChatFields.model_fields)


class PoolingModel(EngineModel):
    """An object that asks for vectors or scores: the engine is a pooling one, and nothing is sampled."""

    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1)] = None
    """Use only so many tokens of what is too long; -1: as many as the model takes. None: it is an error, which names
    the text."""
    lora: Annotated[str | None, Field(min_length=1)] = None
    """Answer with this LoRA adapter: a name of ``lora_adapters``, or of ``Engine.load_adapter``."""
    extra_body: dict[str, Any] | None = None
    """Further fields of the requests' body, passed on as they are, such as ``{"truncation_side": "left"}``."""
    on_error: OnError = "raise"
    """What a document does to the others that is too long or otherwise refused, or has NaN for its score: ``raise``:
    an error, which names it; ``skip``: it is left out; ``none``: it comes last, and has None for its score."""

    @classmethod
    def _of_calls(cls) -> frozenset[str]:
        return frozenset()  # no call of it generates text

    @model_validator(mode="before")
    @classmethod
    def _refuse_sampling(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            given = [name for name in DefaultFields.model_fields if values.get(name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: {cls.__name__} generates no text; leave it out")
        return values

    def _use(self, settings: EngineSettings) -> None:
        changes: dict[str, Any] = dict.fromkeys(
            DefaultFields.model_fields
        )  # the environment's are for models that generate
        if not settings.is_remote:
            changes["engine_args"] = {"runner": "pooling", **settings.engine_args}
        super()._use(settings.model_copy(update=changes))


def _keeping_places(on_error: OnError) -> OnError:
    if on_error == "skip":
        raise ValueError(
            "vector stores match vectors to texts by their places, and would give texts the vectors of others; 'none' "
            "keeps the places, and a call takes on_error='skip'"
        )
    return on_error


class EmbeddingModel(PoolingModel):
    """An object that asks for vectors."""

    on_error: Annotated[OnError, AfterValidator(_keeping_places)] = "raise"
    """What a text does to the others that is too long, empty or otherwise refused, is not a string, or has NaN or only
    zeros for its vector: ``raise``: an error, which names it; ``none``: None in the place of its vector. A call takes
    ``skip``, too: the object does not, as vector stores match vectors to texts by their places."""


@lru_cache
def _checker(cls: type[EngineModel], name: str) -> TypeAdapter[Any] | None:
    """None for what is the engine's or the framework's own, which they check in their own way."""
    owner = next((each for each in cls.__mro__ if name in vars(each).get("__annotations__", ())), None)
    is_ours = owner is not None and (issubclass(owner, EngineModel) or owner in (SamplingFields, ChatFields))
    if not is_ours or name in EngineFields.model_fields:
        return None
    field = cls.model_fields.get(name)
    if field is None:
        return None
    annotation: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError:  # of a user's own class, with a type that pydantic does not know
        return None


def without_aliases(values: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """``values`` with a framework's other names for a setting or parameter replaced by ours.

    Raises:
        InvalidInputError: a value is given under two names.
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        own = aliases.get(name, name)
        if own in named:
            other = next(alias for alias in (own, *aliases) if alias != name and alias in values)
            raise InvalidInputError(f"{name} and {other} are two names of {own}: pass one of them")
        named[own] = value
    return named
