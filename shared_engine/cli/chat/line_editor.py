"""The prompt of the chat: editing, lines, history, completion."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from shared_engine.cli.chat.history import readable

QUOTES = '"""'
_PLACEHOLDER = "Send a message (/? for help)"
_HINT = "Ctrl-D or /exit leaves"
_STYLE = Style.from_dict(
    {
        "placeholder": "ansibrightblack",
        "bottom-toolbar": "noreverse ansibrightblack",
        "bottom-toolbar.warning": "noreverse ansiyellow",
    }
)
PATHS = object()
"""What completes paths, in place of the words to choose from."""

Suggest = Callable[[str, str], Iterable[str] | object]
"""Of a command and what was typed after it -> the words that may stand there, or PATHS; of ``""`` -> the commands."""


class LineEditor:
    """Asks for messages.

    Args:
        status: the line under the prompt, and whether it is a warning.
    """

    def __init__(self, history: History, suggest: Suggest, status: Callable[[], tuple[str, bool]]) -> None:
        self._status = status
        self._session: PromptSession[str] = PromptSession(
            ">>> ",
            multiline=True,
            prompt_continuation=_before_a_line,
            placeholder=self._placeholder,
            bottom_toolbar=self._toolbar,
            style=_STYLE,
            history=history,
            search_ignore_case=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            enable_suspend=True,
            completer=_Suggestions(suggest),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_keys(),
        )

    def read(self, note: Callable[[str], None]) -> str:
        """The next message. Ctrl-C drops what was typed; where nothing was, ``note`` says how to leave.

        Raises:
            EOFError: Ctrl-D at an empty prompt.
        """
        while True:
            try:
                return unquoted(readable(self._session.prompt()))
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    note(_HINT)

    def _placeholder(self) -> FormattedText:
        """Nothing in what is left on the screen, and while the history is searched."""
        app = self._session.app
        is_shown = not app.is_done and not app.layout.is_searching
        return FormattedText([("class:placeholder", _PLACEHOLDER)] if is_shown else [])

    def _toolbar(self) -> FormattedText:
        text, is_warning = self._status()
        return FormattedText([("class:bottom-toolbar.warning" if is_warning else "", text)])


def is_unfinished(text: str) -> bool:
    r"""Whether Enter begins another line: after a backslash, and between three quotes."""
    return text.endswith("\\") or (text.startswith(QUOTES) and text.count(QUOTES) == 1)


def unquoted(text: str) -> str:
    """The message that was meant: without the backslashes and quotes that made it one of several lines."""
    text = text.strip()
    if text.startswith(QUOTES) and text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES):
        return text[len(QUOTES) : -len(QUOTES)].strip("\n")
    return re.sub(r"\\\n", "\n", text)


def _before_a_line(width: int, _: int, wraps: int | bool) -> str:
    """What stands before the lines after the first; nothing but blanks where a long one goes on."""
    return " " * width if wraps else "... "


def _keys() -> KeyBindings:
    keys = KeyBindings()
    is_typing = has_focus(DEFAULT_BUFFER)  # and not searching the history

    @keys.add("enter", filter=is_typing)
    def send_or_go_on(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_unfinished(buffer.text):
            buffer.insert_text("\n")
        elif buffer.text.strip():
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=is_typing)
    @keys.add("c-j", filter=is_typing)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-g", filter=is_typing)
    def open_in_editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    return keys


class _Suggestions(Completer):
    def __init__(self, suggest: Suggest) -> None:
        self._suggest = suggest
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if not typed.startswith("/") or "\n" in typed:
            return
        name, blank, rest = typed.partition(" ")
        found = self._suggest(name, rest) if blank else self._suggest("", "")
        word = rest.lstrip() if blank else name
        if found is PATHS:
            yield from self._paths.get_completions(Document(word, len(word)), complete_event)
            return
        assert isinstance(found, Iterable)
        last = word.rpartition(" ")[2]
        for each in found:
            if each.startswith(last):
                yield Completion(f"{each} ", start_position=-len(last), display=each)
