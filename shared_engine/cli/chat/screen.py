"""What the chat shows beside its prompt: answers as they come, notes, problems."""

from __future__ import annotations

import contextlib
import sys
import termios
from collections.abc import Iterator

from rich.console import Console
from rich.style import Style
from rich.text import Text

from shared_engine.cli.asking.answer import printable
from shared_engine.cli.chat.markdown import MarkdownWriter
from shared_engine.cli.chat.wrapping import WordWriter

_DIM, _PLAIN = Style(dim=True), Style.null()
_WARNING, _ERROR = Style(color="yellow"), Style(color="red")


class Screen:
    """The terminal. Colours and styles as it can, and as NO_COLOR and TERM=dumb want."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)

    @property
    def can_style(self) -> bool:
        return not self.console.is_dumb_terminal

    def say(self, text: str = "") -> None:
        self._lines(text, _PLAIN)

    def note(self, text: str) -> None:
        self._lines(text, _DIM)

    def warn(self, text: str) -> None:
        self._lines(text, _WARNING)

    def error(self, text: str) -> None:
        self._lines(text, _ERROR)

    def _lines(self, text: str, style: Style) -> None:
        self.console.print(Text(printable(text), style))


class AnswerView:
    """One answer, shown as it comes; what the model thinks is dimmed, and stands before it.

    Args:
        is_markdown: highlight it; else it is shown as it was written.
        hides_thinking: say only that the model thinks.
    """

    def __init__(self, screen: Screen, *, is_markdown: bool, hides_thinking: bool) -> None:
        self._screen = screen
        self._hides_thinking = hides_thinking
        self._has_text = False
        self._thinking: WordWriter | None = None
        self._words = WordWriter(screen.console)
        self._markdown = MarkdownWriter(screen.console) if is_markdown and screen.can_style else None

    def reasoning(self, piece: str) -> None:
        if self._thinking is None:
            piece = piece.lstrip("\n")
            if not piece:
                return
            self._thinking = WordWriter(self._screen.console)
            self._screen.note("Thinking ...")
        if not self._hides_thinking:
            self._thinking.write(piece, _DIM)

    def text(self, piece: str) -> None:
        # Models put empty lines between what they think and what they say.
        piece = piece if self._has_text else piece.lstrip("\n")
        if not piece:
            return
        self._has_text = True
        self._end_thinking()
        if self._markdown is not None:
            self._markdown.write(piece)
        else:
            self._words.write(piece, _PLAIN)

    def end(self) -> None:
        """Show what is still held back; the cursor stands at the beginning of a line."""
        self._end_thinking()
        if self._markdown is not None:
            self._markdown.end()
        if not self._words.is_at_line_start:
            self._words.end_line()

    def _end_thinking(self) -> None:
        if self._thinking is None:
            return
        if not self._thinking.is_at_line_start:
            self._thinking.end_line()
        if not self._hides_thinking:
            self._screen.say()
        self._thinking = None


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """What is typed meanwhile does not stand in the answer; the next prompt has it."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
