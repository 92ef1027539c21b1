"""The commands of a chat: ``/help``, ``/set``, ... One function each, one table."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_engine.cli.asking.attachments import attachment, describe
from shared_engine.cli.chat.conversation import load, save
from shared_engine.cli.chat.line_editor import PATHS
from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded
from shared_engine.observe.engines import find_engines
from shared_engine.params import GenerationParams
from shared_engine.validation import say_unknown

if TYPE_CHECKING:
    from shared_engine.cli.chat.repl import Chat

_NOT_HERE = frozenset({"n", "model", "logprobs", "session"})
"""Parameters that say nothing in a chat."""
_OF_ONE_MODEL = frozenset({"revision", "tokenizer", "quantization", "lora_adapters"})
"""Settings that another model does not inherit."""
SECRET = frozenset({"extra_headers"})
"""Parameters that are neither shown nor saved."""
_SWITCHES = ("history", "markdown", "stats")
_WORDS = {"on": True, "off": False}
_EFFORTS = ("low", "medium", "high")
_NONE = "none"


@dataclass(frozen=True)
class Command:
    """
    Attributes:
        takes: what may stand after the name.
        does: what it does, in a line.
    """

    name: str
    takes: str
    does: str
    run: Callable[[Chat, str], None]
    aliases: tuple[str, ...] = ()


def find_command(line: str) -> tuple[Command | None, str]:
    """The command of a line, and what stands after it; None for a message, such as one that begins with a path.

    Raises:
        InvalidInputError: there is no such command.
    """
    found = re.fullmatch(r"(/[A-Za-z]+|/\?)(?:\s+(.*))?", line.strip(), re.DOTALL)
    if found is None:
        return None, line
    name = found[1].lower()
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        raise InvalidInputError(
            f"there is no {name}" + (f"; did you mean {near[0]}?" if near else "") + " (/? lists all)"
        )
    return _BY_NAME[name], (found[2] or "").strip()


def suggestions(name: str, argument: str) -> Iterable[str] | object:
    """See ``line_editor.Suggest``."""
    if not name:
        return sorted(command.name for command in COMMANDS)
    command = _BY_NAME.get(name)
    if command is None:
        return ()
    if command.name in ("/save", "/load", "/image"):
        return PATHS
    words = argument.split(" ")
    if command.name == "/set":
        return _settable() if len(words) < 2 else ("on", "off") if words[0] in _SWITCHES else (_NONE,)
    if len(words) > 1:
        return ()
    if command.name == "/model":
        return sorted({engine.model for engine in find_engines() if engine.model})
    return {
        "/think": ("on", "off", "show", "hide", *_EFFORTS),
        "/stats": ("on", "off"),
        "/system": (_NONE,),
        "/help": [each.name for each in COMMANDS],
    }.get(command.name, ())


# ---- help


def _help(chat: Chat, argument: str) -> None:
    if argument:
        wanted, _ = find_command(argument if argument.startswith("/") else f"/{argument}")
        assert wanted is not None
        chat.screen.say(f"{wanted.name} {wanted.takes}".rstrip() + f"\n  {wanted.does}")
        if wanted.aliases:
            chat.screen.say(f"  also {', '.join(wanted.aliases)}")
        if wanted.name == "/set":
            chat.screen.say(f"  parameters: {', '.join(_settable())}")
        return
    width = max(len(f"{each.name} {each.takes}") for each in COMMANDS)
    for each in COMMANDS:
        chat.screen.say(f"  {f'{each.name} {each.takes}':<{width}}  {each.does}")
    chat.screen.say(
        '\nEnter sends. Alt-Enter, Ctrl-J, a \\ at the end of a line and """ around them make several lines.\n'
        "Ctrl-R searches what you typed before, Tab completes, Ctrl-G opens $EDITOR.\n"
        "Ctrl-C stops an answer, Ctrl-D leaves. A picture, a sound or a video whose path\n"
        "stands in a message goes with it."
    )


# ---- what decides the answers


def _system(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.say(chat.conversation.system or "there is no system prompt: /system TEXT sets one")
        return
    chat.conversation.set_system(None if argument.lower() == _NONE else argument)
    chat.screen.note("the system prompt is set" if chat.conversation.system else "there is no system prompt now")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    value = value.strip()
    if not name:
        _show_parameters(chat)
        for switch, is_on in (("markdown", chat.display.is_markdown), ("stats", chat.display.shows_stats)):
            chat.screen.say(f"  {switch} = {'on' if is_on else 'off'}")
        return
    if name in _SWITCHES:
        _switch(chat, name, value)
        return
    if name in _NOT_HERE:
        raise InvalidInputError(
            f"{name} can't be set in a chat" + ("; /model NAME changes it" if name == "model" else "")
        )
    if name not in _settable():
        raise InvalidInputError(say_unknown("parameter", name, _settable()))
    if not value:
        known = chat.parameters.get(name)
        chat.screen.say(f"{name} is not set" if known is None else f"{name} = {_in_words(known)}")
        return
    parameters = {each: old for each, old in chat.parameters.items() if each != name}
    if value.lower() != _NONE:
        parameters[name] = _value(name, value)
    GenerationParams(**parameters)
    chat.parameters = parameters
    chat.screen.note(f"{name} = {_in_words(parameters[name])}" if name in parameters else f"{name} is not set any more")


def _switch(chat: Chat, name: str, value: str) -> None:
    if value.lower() not in _WORDS:
        raise InvalidInputError(f"{name} is on or off, got {value!r}")
    is_on = _WORDS[value.lower()]
    told = f"{name} = {value.lower()}"
    if name == "markdown":
        chat.display.is_markdown = is_on
    elif name == "stats":
        chat.display.shows_stats = is_on
    else:
        told = chat.history_switch(is_on)
    chat.screen.note(told)


def _value(name: str, text: str) -> Any:
    """As JSON, where it is any; a text parameter takes the words as they are."""
    field = GenerationParams.model_fields.get(name)
    if field is not None and field.annotation == (str | None):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _think(chat: Chat, argument: str) -> None:
    word = argument.lower()
    if word in ("show", "hide"):
        chat.display.hides_thinking = word == "hide"
    elif word in ("on", "off", *_EFFORTS, _NONE):
        kept = {k: v for k, v in chat.parameters.items() if k not in ("enable_thinking", "reasoning_effort")}
        chosen = {"reasoning_effort": word} if word in _EFFORTS else {"enable_thinking": _WORDS.get(word)}
        chat.parameters = {**kept, **{name: value for name, value in chosen.items() if value is not None}}
    elif word:
        raise InvalidInputError(f"/think takes on, off, {', '.join(_EFFORTS)}, none (the model decides), show or hide")
    thinks = chat.parameters.get("reasoning_effort", chat.parameters.get("enable_thinking"))
    state = "as the model decides" if thinks is None else {True: "on", False: "off"}.get(thinks, str(thinks))
    chat.screen.note(f"thinking: {state}, {'hidden' if chat.display.hides_thinking else 'shown'}")


def _model(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.say(_where(chat))
        return
    given = {name: getattr(chat.settings, name) for name in chat.settings.model_fields_set - _OF_ONE_MODEL}
    if chat.use(type(chat.settings)(**{**given, "model": argument})):
        chat.conversation.set_system(chat.conversation.system)  # the tokens are to be counted again
        adapter = chat.parameters.get("lora")
        if adapter is not None:
            chat.parameters = {name: value for name, value in chat.parameters.items() if name != "lora"}
            chat.screen.note(f"lora = {adapter} is not set any more: an adapter is of one model")
        window = chat.engine.context_window
        chat.screen.note(f"now {_where(chat)}" + (f", {window:,} tokens of context" if window else ""))


def _image(chat: Chat, argument: str) -> None:
    if not argument:
        chat.screen.say(", ".join(describe(part) for part in chat.attached) or "/image PATH or /image URL attaches one")
        return
    place = argument
    if len(place) > 1 and place[0] == place[-1] and place[0] in "'\"":
        place = place[1:-1]
    part = attachment(place)
    chat.attached.append(part)
    chat.screen.note(f"{describe(part)} attached: it goes with your next message")


# ---- the conversation


def _clear(chat: Chat, _: str) -> None:
    chat.conversation.clear()
    chat.attached = []
    chat.file = None
    kept = [
        *(["the system prompt stays"] if chat.conversation.system else []),
        *(["/retry asks your last question"] if chat.conversation.unanswered else []),
    ]
    chat.screen.note("; ".join(["a new conversation", *kept]))


def _undo(chat: Chat, _: str) -> None:
    question = chat.conversation.take_back()
    if question is None:
        raise InvalidInputError("there is nothing to take back")
    chat.screen.note(f"taken back: {_first_words(question)}")


def _retry(chat: Chat, _: str) -> None:
    question = chat.conversation.unanswered or chat.conversation.take_back()
    if question is None:
        raise InvalidInputError("there is no question to ask again")
    chat.ask(question)


def _save(chat: Chat, argument: str) -> None:
    file = expanded(argument) if argument else chat.file
    if file is None:
        raise InvalidInputError("name a file: /save FILE")
    document = chat.document()
    save(document, file, may_replace=chat.file is not None and file.absolute() == chat.file.absolute())
    chat.file = file
    chat.screen.note(f"saved {len(document['messages'])} messages as {file}")


def load_into(chat: Chat, file: Path) -> None:
    """Go on with the conversation of a file, its system prompt and its parameters.

    Raises:
        InvalidInputError: the file can't be read, or is not a chat. Nothing has changed then.
    """
    session = load(file)
    parameters = session.get("parameters", {})
    GenerationParams(**parameters)
    chat.conversation.replace_by(session["messages"])
    chat.parameters = {**chat.parameters, **parameters}
    chat.file = file
    chat.screen.note(f"{len(session['messages'])} messages of {file}")
    saved_with = session.get("model")
    if saved_with and saved_with != chat.settings.model:
        chat.screen.note(f"it was saved with {saved_with}: /model {saved_with} goes on with that")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise InvalidInputError("name a file: /load FILE")
    load_into(chat, expanded(argument))


# ---- looking


def _show(chat: Chat, argument: str) -> None:
    if argument:
        raise InvalidInputError("/show takes nothing")
    chat.screen.say(f"  model: {_where(chat)}")
    chat.screen.say(f"  context: {chat.context_in_words() or 'not known'}")
    chat.screen.say(f"  system: {chat.conversation.system or _NONE}")
    chat.screen.say(f"  messages: {len(chat.conversation.messages)}")
    _show_parameters(chat)


def _show_parameters(chat: Chat) -> None:
    shown = {**chat.settings.sampling_defaults, **chat.parameters}
    for name, value in shown.items():
        if value is not None:
            chat.screen.say(f"  {name} = {'...' if name in SECRET else _in_words(value)}")
    if not shown:
        chat.screen.say("  parameters: the model's own")


def _stats(chat: Chat, argument: str) -> None:
    if argument:
        _switch(chat, "stats", argument)
        return
    if chat.last_answer is None:
        raise InvalidInputError("no answer has come yet")
    totals = chat.totals
    chat.screen.say(f"last answer: {chat.last_answer.figures}")
    chat.screen.say(
        f"this chat: {totals.answers} answers in {totals.seconds:.1f} s, {totals.prompt_tokens} tokens of prompts, "
        f"{totals.completion_tokens} of answers"
    )


def _tokens(chat: Chat, argument: str) -> None:
    messages = chat.conversation.to_send(chat.conversation.unanswered)
    if not argument and not messages:
        raise InvalidInputError("nothing was said yet; /tokens TEXT counts a text")
    text = argument or messages
    count = chat.waiting(lambda: chat.engine.count_tokens(text), "not counted")
    window = chat.engine.context_window
    if count is not None:
        chat.screen.say(f"{count:,} tokens" + (f" of {window:,} ({count / window:.0%})" if window else ""))


def _exit(chat: Chat, _: str) -> None:
    chat.leave()


COMMANDS = (
    Command("/help", "[COMMAND]", "what there is", _help, ("/?",)),
    Command("/system", "[TEXT | none]", "show or set the system prompt", _system),
    Command("/set", "[NAME [VALUE | none]]", "parameters; also markdown, stats, history", _set),
    Command("/show", "", "model, context, system prompt, parameters", _show),
    Command("/think", "[on | off | low ...]", "thinking before the answer; show or hide it", _think),
    Command("/model", "[NAME]", "show the model, or go on with another one", _model),
    Command("/image", "PATH | URL", "attach a picture, sound, video or text", _image),
    Command("/retry", "", "ask the last question again", _retry),
    Command("/undo", "", "take the last question and its answer back", _undo),
    Command("/clear", "", "begin a new conversation", _clear, ("/new",)),
    Command("/save", "[FILE]", "the conversation as JSON", _save),
    Command("/load", "FILE", "go on with a saved conversation", _load),
    Command("/stats", "[on | off]", "figures of the last answer; on: after each", _stats),
    Command("/tokens", "[TEXT]", "count the conversation, or a text", _tokens),
    Command("/exit", "", "leave", _exit, ("/bye", "/quit")),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}


def _settable() -> list[str]:
    return sorted((GenerationParams.model_fields.keys() - _NOT_HERE) | {*_SWITCHES})


def _where(chat: Chat) -> str:
    settings = chat.settings
    return (
        f"{settings.model or 'the first model'} at {settings.base_url}" if settings.is_remote else str(settings.model)
    )


def _in_words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _first_words(question: dict[str, Any]) -> str:
    content = question["content"]
    if isinstance(content, list):
        content = " ".join(str(part.get("text") or f"[{describe(part)}]") for part in content if isinstance(part, dict))
    text = " ".join(str(content).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
