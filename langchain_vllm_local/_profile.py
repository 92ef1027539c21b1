"""What a model can do, for LangChain's ``profile``, from its settings and the files it has here. Starts nothing."""

from __future__ import annotations

from typing import Any

from shared_engine.model_files.folder import inputs
from shared_engine.model_files.parsers import choose_parsers
from shared_engine.settings import EngineSettings


class ToldProfile(dict[str, Any]):
    """A profile that comes from here: it follows the settings, where a user's own stays as it is."""


def model_profile(settings: EngineSettings) -> ToldProfile:
    """core's ModelProfile, as far as can be told; what only the server or the hub would know is left out."""
    profile = ToldProfile(text_inputs=True, text_outputs=True, temperature=True, structured_output=True)
    if settings.is_remote or settings.model is None:
        return profile
    parsers = choose_parsers(settings.model, settings.engine_args)
    profile["tool_calling"] = profile["tool_choice"] = bool(parsers.get("tool_call_parser"))
    profile["reasoning_output"] = bool(parsers.get("reasoning_parser"))
    folder = settings.model_folder()
    length = settings.context_window()
    if length is not None:
        profile["max_input_tokens"] = length
    if settings.max_tokens is not None:
        profile["max_output_tokens"] = settings.max_tokens
    if folder is not None:
        taken = inputs(folder)
        profile["image_inputs"] = profile["image_url_inputs"] = profile["image_tool_message"] = "image" in taken
        profile["audio_inputs"] = "audio" in taken
        profile["video_inputs"] = "video" in taken
    return profile
