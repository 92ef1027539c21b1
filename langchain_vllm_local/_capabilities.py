"""What a model can do, for LangChain's ``profile``: from the settings, and the model's files here. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr, model_validator

from langchain_vllm_local._engine_model import LangChainModel
from shared_engine.adapting import model_facts
from shared_engine.settings import EngineSettings

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile


class OwnProfile(dict[str, Any]):
    """A profile made here: it follows the settings, whereas one that the user gave stays as it is."""


class Capabilities(LangChainModel):
    """Mixed into a chat model: its ``profile``, unless the user gave one, and what requests have to know of it."""

    if TYPE_CHECKING:  # a field of core's
        profile: ModelProfile | None = None

    _own_profile: OwnProfile = PrivateAttr()

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self._own_profile = model_profile(settings)
        if self.profile is None or isinstance(self.profile, OwnProfile):
            self.__dict__["profile"] = self._own_profile

    @model_validator(mode="before")
    @classmethod
    def _drop_own_profile(cls, values: Any) -> Any:
        """Core makes a model of another one's fields (configurable_fields): the profile is not the user's then."""
        if isinstance(values, Mapping) and isinstance(values.get("profile"), OwnProfile):
            return {name: value for name, value in values.items() if name != "profile"}
        return values

    def _check_calls_are_read(self) -> None:
        """
        Raises:
            InvalidInputError: no tool-call parser is known for the model, so vLLM would not recognise its calls.
        """
        if self._own_profile.get("tool_calling") is False:
            raise model_facts.no_tool_parser(self.model)


def model_profile(settings: EngineSettings) -> OwnProfile:
    """core's ModelProfile, as far as it can be known; what only the server or the hub would know is left out."""
    profile = OwnProfile(text_inputs=True, text_outputs=True, temperature=True, structured_output=True)
    parsed = model_facts.parsed(settings)
    if parsed is None:
        return profile
    profile["tool_calling"] = profile["tool_choice"] = parsed.tool_calls
    profile["reasoning_output"] = parsed.reasoning
    length = settings.context_window()
    if length is not None:
        profile["max_input_tokens"] = length
    if settings.max_tokens is not None:
        profile["max_output_tokens"] = settings.max_tokens
    inputs = model_facts.media_inputs(settings)
    if inputs is not None:
        profile["image_inputs"] = profile["image_url_inputs"] = profile["image_tool_message"] = "image" in inputs
        profile["audio_inputs"] = "audio" in inputs
        profile["video_inputs"] = "video" in inputs
    return profile
