"""One prompt, one answer: the answer alone on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from shared_engine.adapting.media_errors import media_errors
from shared_engine.adapting.model_facts import has_chat_template
from shared_engine.cli.asking.answer import Answer, figures, printable
from shared_engine.cli.asking.attachments import WORDING, Part, user_message
from shared_engine.cli.asking.forms import form_parameters
from shared_engine.cli.exit_codes import DONE, FAILED
from shared_engine.cli.input_texts import decoded
from shared_engine.cli.terminal import DIM, complain, painted, tell
from shared_engine.engine import Engine
from shared_engine.errors import InvalidInputError
from shared_engine.results import GenerationResult
from shared_engine.settings import EngineSettings

Asked = str | list[dict[str, Any]]
Form = tuple[str | None, list[str] | None, str | None]


@dataclass(frozen=True)
class Once:
    """What is asked, and how the answer is shown.

    Attributes:
        form: see ``form_parameters``.
        is_raw: the prompt is continued as it is, without a chat template.
        is_json: all of the answer as one object.
    """

    prompt: str
    attached: tuple[Part, ...] = ()
    system: str | None = None
    form: Form = (None, None, None)
    is_raw: bool = False
    is_streamed: bool = True
    is_json: bool = False
    hides_thinking: bool = False
    shows_stats: bool = False


def is_at_a_terminal() -> bool:
    """Somebody types, and sees what is printed."""
    streams = (sys.stdin, sys.stdout)
    return all(stream is not None and stream.isatty() for stream in streams)


def read_stdin() -> str | None:
    """What was piped in; None where stdin is a terminal, or closed.

    Raises:
        InvalidInputError: it is not UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return None
    return decoded(sys.stdin.buffer.read(), "the input", "; a picture or a sound goes with -a FILE").rstrip("\n")


def answer_once(settings: EngineSettings, parameters: Mapping[str, Any], once: Once) -> int:
    """Ask, and print the answer as it comes; return the exit code: FAILED for a form that was cut off.

    Raises:
        VLLMError: there is no answer. What had come of it was printed.
    """
    engine = Engine(settings)
    params = {**parameters, **form_parameters(*once.form)}
    messages = _messages(once)
    if not once.is_raw and has_chat_template(settings) is False:
        raise InvalidInputError(f"{settings.model} has no chat template: --raw continues the prompt as it is")
    asked = _raw_prompt(once) if once.is_raw else messages
    is_whole = once.is_json or not once.is_streamed or (params.get("n") or 1) > 1
    with media_errors(messages, settings, WORDING):
        was_cut = (_ask_whole if is_whole else _ask_streamed)(engine, asked, params, once)
    if was_cut:
        complain("the answer was cut off: it has as many tokens as max_tokens, or the model's context, allows")
    return FAILED if was_cut and once.form != (None, None, None) else DONE


def _ask_streamed(engine: Engine, asked: Asked, params: Mapping[str, Any], once: Once) -> bool:
    """Print the answer as it comes; return whether it was cut off."""
    stream = engine.stream_generate(asked, **params) if isinstance(asked, str) else engine.stream_chat(asked, **params)
    answer, view = Answer(), _Printed(once)
    try:
        answer.follow(stream, view.text, view.reasoning)
    finally:
        view.end()
    if once.shows_stats:
        complain(figures(answer.usage, _waited_s(engine), answer.first_s, answer.total_s))
    return answer.was_cut


def _ask_whole(engine: Engine, asked: Asked, params: Mapping[str, Any], once: Once) -> bool:
    """Print all answers when they are there; return whether one was cut off."""
    began = time.monotonic()
    result = engine.generate(asked, **params) if isinstance(asked, str) else engine.chat(asked, **params)
    total_s = time.monotonic() - began
    if once.is_json:
        timing = {"load_s": round(_waited_s(engine), 3), "total_s": round(total_s, 3)}
        told = msgspec.to_builtins(result)
        del told["raw"]  # which has no option
        print(json.dumps({**told, "timing": timing}, ensure_ascii=False), flush=True)
    else:
        _print_choices(result, once)
    if once.shows_stats:
        complain(figures(result.usage, _waited_s(engine), None, total_s))
    return any(choice.finish_reason == "length" for choice in result.choices)


def _waited_s(engine: Engine) -> float:
    """For the engine's start, of this process's only request."""
    return engine.stats().requests.wait.sum_s


def _messages(once: Once) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": once.system}] if once.system else []
    return [*system, user_message(once.prompt, once.attached)]


def _raw_prompt(once: Once) -> str:
    if once.system:
        raise InvalidInputError("--system goes through the chat template, which --raw leaves out")
    if any(part["type"] != "text" for part in once.attached):
        raise InvalidInputError("pictures, sounds and videos go through the chat template, which --raw leaves out")
    return "\n\n".join([*(part["text"] for part in once.attached), once.prompt])


def _print_choices(result: GenerationResult, once: Once) -> None:
    for position, choice in enumerate(result.choices):
        view = _Printed(once)
        if position:
            print()
        view.reasoning(choice.reasoning or "")
        view.text(choice.text)
        view.end()


class _Printed:
    """An answer on stdout, whatever the model thinks on stderr; each piece at once."""

    def __init__(self, once: Once) -> None:
        self._hides_thinking = once.hides_thinking
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._thought = self._text = "\n"

    def reasoning(self, piece: str) -> None:
        if piece and not self._hides_thinking:
            self._thought = piece
            shown = printable(piece) if sys.stderr is not None and sys.stderr.isatty() else piece
            tell(painted(shown, DIM, sys.stderr), end="")

    def text(self, piece: str) -> None:
        if piece:
            self._end_thought()
            self._text = piece
            print(printable(piece) if self._is_terminal else piece, end="", flush=True)

    def end(self) -> None:
        """Both end with a line's end."""
        self._end_thought()
        if not self._text.endswith("\n"):
            print(flush=True)

    def _end_thought(self) -> None:
        if not self._thought.endswith("\n"):
            tell("")
        self._thought = "\n"
