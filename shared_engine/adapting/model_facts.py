"""What is known of a model before anything starts: from the settings, and from its files on this machine.

None means: it can't be known here, since the server is remote, or the model was not downloaded yet. Adapters report
to their framework what the model can do; these functions never ask a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shared_engine.conversations.templates import refused_here
from shared_engine.conversations.traits import Trait
from shared_engine.errors import InvalidInputError
from shared_engine.model_files.folder import Efforts, efforts, inputs, lacks_chat_template
from shared_engine.model_files.parsers import choose_parsers, known_tool_parsers
from shared_engine.settings import EngineSettings

MOST_FOR_A_THOUGHT = 32_768
MOST_FOR_AN_ANSWER = 1024


def are_final(settings: EngineSettings) -> bool:
    """False while the model's files are still to come: they will say more."""
    return settings.is_remote or settings.model_folder() is not None


class Parsed(NamedTuple):
    """What vLLM finds in a model's answers, because it has a parser for what the model writes."""

    tool_calls: bool
    reasoning: bool


def parsed(settings: EngineSettings) -> Parsed | None:
    """By the parsers that the settings name, or else that are known for the model."""
    if settings.is_remote or settings.model is None:
        return None
    chosen = choose_parsers(settings.model, settings.engine_args)
    return Parsed(bool(chosen.get("tool_call_parser")), bool(chosen.get("reasoning_parser")))


def thinks(settings: EngineSettings, defaults: Mapping[str, Any]) -> bool:
    """Whether its answers begin with a thought, as far as its name, its files or the requests' ``defaults`` show."""
    switch = {**(defaults.get("chat_template_kwargs") or {}), **defaults}.get("enable_thinking")
    if switch is not None:
        return bool(switch)
    if defaults.get("reasoning_effort") is not None:
        return bool(defaults["reasoning_effort"] != "none")
    if settings.model is None:
        return False
    args = {} if settings.is_remote else settings.engine_args
    return bool(choose_parsers(settings.model, args).get("reasoning_parser"))


def room_for_answer(window: int, *, is_thinking: bool) -> int:
    """Tokens of a context window that prompts are to leave, where no ``max_tokens`` says so: a quarter of it, up to
    what an answer takes, with the thought before it.
    """
    return max(1, min(window // 4, MOST_FOR_A_THOUGHT if is_thinking else MOST_FOR_AN_ANSWER))


def reasoning_efforts(settings: EngineSettings) -> Efforts | None:
    """What ``reasoning_effort`` may be, where the model's files show that it has a place for it."""
    folder = None if settings.is_remote else settings.model_folder()
    return None if folder is None else efforts(folder)


def late_system_messages_stay(settings: EngineSettings) -> bool | None:
    """Whether a system message is sent where it stands, though not at the front."""
    if settings.merge_messages != "auto":
        return settings.merge_messages == "never"
    refused = refused_here(settings)
    return None if refused is None else Trait.LATE_SYSTEM not in refused


def media_inputs(settings: EngineSettings) -> frozenset[str] | None:
    """What the model takes beside text: some of ``image``, ``audio``, ``video``."""
    folder = None if settings.is_remote else settings.model_folder()
    return None if folder is None else inputs(folder)


def has_chat_template(settings: EngineSettings) -> bool | None:
    """Whether vLLM has a chat template to apply; None also where the model's files leave it open."""
    if "chat_template" in settings.engine_args:
        return True
    folder = settings.model_folder()
    return False if folder is not None and lacks_chat_template(folder) else None


def no_tool_parser(model: str | None) -> InvalidInputError:
    """The error of a request with tools whose calls vLLM would not recognise, with what to do."""
    return InvalidInputError(
        f"no tool-call parser is known for {model}: if it was trained to call tools, name the parser that reads its "
        f"calls, as in engine_args={{'tool_call_parser': 'hermes'}}; the common ones are "
        f"{', '.join(known_tool_parsers())}"
    )
