"""Words on a terminal as they come, none of them cut in two at its edge."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from shared_engine.cli.asking.answer import printable

_TOKENS = re.compile(r"\n|[^\S\n]+|\S+")


class WordWriter:
    """Writes text in pieces that may begin and end anywhere. A word is written when its end is known.

    The width is asked for at each word: a terminal may be resized meanwhile.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._column = 0
        self._blank = ""
        self._word: list[tuple[str, Style]] = []
        self._is_long = False
        """The word fits no line, and some of it may have been written: it is cut at the edge."""
        self.indent = 0
        """Of the lines that this one is wrapped to, in cells."""

    @property
    def is_at_line_start(self) -> bool:
        return self._column == 0 and not self._word and not self._blank

    def write(self, text: str, style: Style) -> None:
        for token in _TOKENS.findall(printable(text).replace("\t", "    ")):
            if token == "\n":
                self.end_line()
            elif token.isspace():
                self.flush()
                self._blank += token
            else:
                self._add(token, style)

    def flush(self) -> None:
        """Write the word that is held back, as if it had ended."""
        self._write_word()
        self._is_long = False

    def _write_word(self) -> None:
        width = sum(cell_len(piece) for piece, _ in self._word)
        if not width:
            return
        self._is_long = self._is_long or width > self._console.width - self.indent
        room = self._console.width - self._column - len(self._blank)
        if width > room and self._column > self.indent and not self._is_long:
            self._console.print(f"\n{' ' * self.indent}", end="", soft_wrap=True)
            self._column = self.indent
        elif self._blank:
            self._print(self._blank, Style.null())
        self._blank = ""
        for piece, style in self._word:
            self._print(piece, style)
        self._word = []

    def end_line(self) -> None:
        self.flush()
        self._console.print()
        self._column, self._blank, self.indent = 0, "", 0

    def _add(self, token: str, style: Style) -> None:
        """Between characters of double width a line may be broken anywhere: such texts have no blanks."""
        begin = 0
        for position, character in enumerate(token):
            if cell_len(character) == 2:
                self._hold(token[begin : position + 1], style)
                self.flush()
                begin = position + 1
        if begin < len(token):
            self._hold(token[begin:], style)
            if sum(cell_len(piece) for piece, _ in self._word) > self._console.width - self.indent:
                self._write_word()  # such as a language that is written without blanks

    def _hold(self, piece: str, style: Style) -> None:
        if self._word and self._word[-1][1] == style:
            piece = self._word.pop()[0] + piece
        self._word.append((piece, style))

    def _print(self, text: str, style: Style) -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)
        column = self._column + cell_len(text)
        # At the edge a terminal waits for the next character before it begins a line.
        self._column = (column - 1) % max(1, self._console.width) + 1
