"""Markdown shown while it is written: nothing is drawn twice, so an answer may be longer than the screen.

A line of a text comes word by word. Of a code block each line comes when it is whole, a table when its last line is
there. What is not understood is shown as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.console import Console
from rich.markdown import Markdown
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text

from shared_engine.cli.asking.answer import printable
from shared_engine.cli.chat.wrapping import WordWriter

_PLAIN, _BOLD, _ITALIC = Style.null(), Style(bold=True), Style(italic=True)
_CODE, _FENCE = Style(color="cyan"), Style(dim=True)
_HEAD_LENGTH = 7
"""So many characters of a line tell what it is: ``###### ``."""
_MAX_HELD = 200
"""A mark whose other half does not come within so many characters is an ordinary character."""
_MAX_READ = 30
"""So many lines of a code block are read again to highlight the next one, which a text of several lines may end."""
_FENCED = re.compile(r" *(`{3,}|~{3,})\s*([\w+#.-]*)")
_HEADING = re.compile(r"#{1,6} +")
_LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+")
_TABLE_RULE = re.compile(r"[\s|:-]*-[\s|:-]*")
_SPANS = (
    (re.compile(r"(`+)(?=[^`\s])(.+?)(?<!`)\1(?!`)"), _CODE),
    (re.compile(r"(\*\*)(?=[^\s*])((?:(?!\*\*).)+)(?<=\S)\*\*(?!\*)"), _BOLD),
    (re.compile(r"(\*)(?=[^\s*])([^*]+)(?<=\S)\*(?!\*)"), _ITALIC),
)


class MarkdownWriter:
    """Shows a text that comes in pieces."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._words = WordWriter(console)
        self._held = ""
        self._is_line_begun = False
        self._line_style = _PLAIN
        self._fence: str | None = None
        self._language = ""
        self._code: list[str] = []
        self._table: list[str] = []

    def write(self, piece: str) -> None:
        self._held += piece
        while self._step(is_end=False):
            pass

    def end(self) -> None:
        """Show what was held back. The text may go on after it, as an answer that was cut off does not."""
        while self._held and self._step(is_end=True):
            pass
        self._show_table()
        if not self._words.is_at_line_start:
            self._words.end_line()
        self._fence, self._code, self._is_line_begun = None, [], False

    def _step(self, *, is_end: bool) -> bool:
        """Show something of what is held; False where more must come first."""
        line, newline, rest = self._held.partition("\n")
        is_whole = bool(newline) or is_end
        if self._is_line_begun:
            return self._show_words(line, newline, rest, is_end=is_end)
        if self._fence is not None:
            return is_whole and self._take(rest, self._show_code, line)
        is_marked = line.lstrip().startswith(("`" * 3, "~" * 3, "|"))
        if not is_whole and (is_marked or len(line) < _HEAD_LENGTH):
            return False
        if line.lstrip().startswith("|"):
            return self._take(rest, self._table.append, line)
        self._show_table()
        opening = _FENCED.match(line) if is_marked else None
        if opening is not None:
            return self._take(rest, self._open_fence, line)
        self._begin_line(line)
        return True

    def _take(self, rest: str, show: Callable[[str], None], line: str) -> bool:
        self._held = rest
        show(line)
        return True

    # ---- code and tables

    def _open_fence(self, line: str) -> None:
        match = _FENCED.match(line)
        assert match is not None
        self._fence, self._language, self._code = match[1], match[2] or "text", []
        self._print_line(Text(printable(line), _FENCE))

    def _show_code(self, line: str) -> None:
        assert self._fence is not None
        if line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0]):
            self._fence = None
            self._print_line(Text(printable(line), _FENCE))
            return
        self._code.append(printable(line).expandtabs(4))
        known = self._code = self._code[-_MAX_READ:]
        syntax = Syntax("", self._language, theme="ansi_dark", background_color="default")
        self._print_line(syntax.highlight("\n".join(known)).split("\n", allow_blank=True)[len(known) - 1])

    def _show_table(self) -> None:
        lines, self._table = [printable(line) for line in self._table], []
        if len(lines) > 1 and _TABLE_RULE.fullmatch(lines[1]):
            self._console.print(Markdown("\n".join(lines)))
            return
        for line in lines:  # such as a command that begins with a pipe
            self._print_line(Text(line))

    def _print_line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)

    # ---- a line of text

    def _begin_line(self, line: str) -> None:
        self._is_line_begun = True
        heading, item = _HEADING.match(line), _LIST_ITEM.match(line)
        self._line_style = _BOLD if heading else _PLAIN
        if heading is not None:
            self._held = self._held[heading.end() :]
        if item is not None:
            self._held = self._held[item.end() :]
            self._words.write(item[0], _PLAIN)
            self._words.indent = len(item[0].replace("\t", "    "))

    def _show_words(self, line: str, newline: str, rest: str, *, is_end: bool) -> bool:
        left = self._show_spans(line, self._line_style, is_whole=bool(newline) or is_end)
        self._held = left + newline + rest
        if newline:
            self._held, self._is_line_begun = rest, False
            self._words.end_line()
            return True
        return False

    def _show_spans(self, text: str, style: Style, *, is_whole: bool) -> str:
        """Show what is understood of a line; return what more must come for."""
        while text:
            mark = re.search(r"[`*]", text)
            if mark is None:
                self._words.write(text, style)
                return ""
            self._words.write(text[: mark.start()], style)
            text = text[mark.start() :]
            for pattern, own in _SPANS:
                match = pattern.match(text)
                # At the very end a mark may still grow: of ``*`` may come ``**``.
                if match is not None and (is_whole or match.end() < len(text)):
                    if own is _CODE:
                        self._words.write(match[2], style + own)
                    else:
                        self._show_spans(match[2], style + own, is_whole=True)
                    text = text[match.end() :]
                    break
            else:
                marks = re.match(r"`+|\*+", text)
                assert marks is not None
                opens = marks.end() == len(text) or not text[marks.end()].isspace()
                if opens and not is_whole and len(text) < _MAX_HELD:
                    return text
                self._words.write(marks[0], style)
                text = text[marks.end() :]
        return ""
