"""What a model can do, for LangChain's ``profile``: from the settings and the model's files here; what these do not
say is asked for where somebody looks for it. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.model_profile import ModelProfile
from pydantic import PrivateAttr, model_validator

from langchain_vllm_local._engine_model import LangChainModel
from shared_engine import Engine
from shared_engine.adapting import model_facts
from shared_engine.settings import EngineSettings

if TYPE_CHECKING:
    from typing import Self

_LATER = frozenset(
    (
        "attachment", "audio_inputs", "image_inputs", "image_tool_message", "image_url_inputs", "max_input_tokens",
        "mid_conversation_system_messages", "reasoning_effort_default", "reasoning_effort_levels", "video_inputs",
    )
)  # fmt: skip
"""What may have to be asked for, and what may change when the engine has started."""


class OwnProfile(dict[str, Any]):
    """A profile made here: it follows the settings, whereas one that the user gave stays as it is.

    Args:
        known: at once.
        later: gives what stands in ``_LATER``; called by a look at that, or at all there is.
    """

    def __init__(self, known: Mapping[str, Any], later: Callable[[], Mapping[str, Any]] = dict) -> None:
        super().__init__(known)
        self._later = later
        self._learned: dict[str, Any] = {}

    def _whole(self) -> dict[str, Any]:
        """Itself, with what is known by now. What somebody has written into it stays."""
        for name, value in self._later().items():
            if super().get(name) == self._learned.get(name):
                super().__setitem__(name, value)
                self._learned[name] = value
        return self

    def _for(self, name: object) -> dict[str, Any]:
        return self._whole() if name in _LATER else self

    def __getitem__(self, name: str) -> Any:
        return dict.__getitem__(self._for(name), name)

    def get(self, name: str, default: Any = None) -> Any:
        return dict.get(self._for(name), name, default)

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self._for(name), name)

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self._whole())

    def __len__(self) -> int:
        return dict.__len__(self._whole())

    def __bool__(self) -> bool:
        return True  # text goes in and out, whoever else is to be asked

    def keys(self) -> Any:
        return dict.keys(self._whole())

    def values(self) -> Any:
        return dict.values(self._whole())

    def items(self) -> Any:
        return dict.items(self._whole())

    def copy(self) -> dict[str, Any]:
        return dict(dict.items(self._whole()))

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, dict):  # core compares all fields with their defaults
            return False
        return dict.__eq__(self._whole(), other._whole() if isinstance(other, OwnProfile) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return dict.__repr__(self._whole())

    def __reduce__(self) -> tuple[Any, ...]:
        # In a copy or a pickle of a model: its own is made of the settings there.
        return OwnProfile, (dict(dict.items(self)),)


class Capabilities(LangChainModel):
    """Mixed into a chat model: its ``profile``, unless the user gave one, and what requests have to know of it."""

    if TYPE_CHECKING:  # a field of core's
        profile: ModelProfile | None = None

    _own_profile: OwnProfile = PrivateAttr()

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self._own_profile = own_profile(self._engine)
        if self.profile is None or isinstance(self.profile, OwnProfile):
            self.__dict__["profile"] = self._own_profile

    @model_validator(mode="before")
    @classmethod
    def _drop_own_profile(cls, values: Any) -> Any:
        """Core makes a model of another one's fields (configurable_fields): the profile is not the user's then."""
        if isinstance(values, Mapping) and isinstance(values.get("profile"), OwnProfile):
            return {name: value for name, value in values.items() if name != "profile"}
        return values

    @model_validator(mode="after")
    def _check_profile_keys(self) -> Self:
        """In place of core's, which would look at all of ours and so ask for it: that of the user is checked."""
        if not isinstance(self.profile, OwnProfile):
            super()._check_profile_keys()  # type: ignore[misc]
        return self

    def __repr_args__(self) -> Any:
        return ((name, value) for name, value in super().__repr_args__() if not isinstance(value, OwnProfile))

    def _check_calls_are_read(self) -> None:
        """
        Raises:
            InvalidInputError: no tool-call parser is known for the model, so vLLM would not recognise its calls.
        """
        if self._own_profile.get("tool_calling") is False:
            raise model_facts.no_tool_parser(self.model)


def own_profile(engine: Engine) -> OwnProfile:
    """core's ModelProfile, as far as it can be known. Nobody is asked before somebody looks."""
    return OwnProfile(_of_this_core(_known(engine.settings)), lambda: _of_this_core(_learned(engine)))


def _known(settings: EngineSettings) -> dict[str, Any]:
    """What the settings say, and what holds for every model here."""
    known: dict[str, Any] = {
        "text_inputs": True,
        "text_outputs": True,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "pdf_inputs": False,
        "pdf_tool_message": False,
        "structured_output": True,
        "temperature": not settings.reproducible,
        "tool_call_streaming": True,
        "mid_conversation_tools": False,
    }
    if settings.model is not None:
        known["name"] = Path(settings.model).name
    if not settings.is_remote:
        known["open_weights"] = True
    if settings.max_tokens is not None:
        known["max_output_tokens"] = settings.max_tokens
    parsed = model_facts.parsed(settings)
    if parsed is not None:
        known |= {"tool_calling": parsed.tool_calls, "tool_choice": parsed.tool_calls}
        known["reasoning_output"] = parsed.reasoning
    return known


def _learned(engine: Engine) -> dict[str, Any]:
    learned: dict[str, Any] = {}
    about = engine.about_model()
    if about.context_window is not None:
        learned["max_input_tokens"] = about.context_window
    if about.inputs is not None:
        learned["image_inputs"] = learned["image_url_inputs"] = "image" in about.inputs
        learned["image_tool_message"] = "image" in about.inputs
        learned["audio_inputs"] = "audio" in about.inputs
        learned["video_inputs"] = "video" in about.inputs
        learned["attachment"] = bool(about.inputs)
    efforts = model_facts.reasoning_efforts(engine.settings)
    if efforts is not None:
        learned["reasoning_effort_levels"] = list(efforts.levels)
        learned |= {} if efforts.default is None else {"reasoning_effort_default": efforts.default}
    stays = model_facts.late_system_messages_stay(engine.settings)
    if stays is not None:
        learned["mid_conversation_system_messages"] = stays
    return learned


def _of_this_core(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the installed core does not know yet, of which it would warn."""
    return {name: value for name, value in values.items() if name in ModelProfile.__annotations__}
