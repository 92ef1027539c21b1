"""A real pseudo-terminal with a screen: what a person would see and type."""

from __future__ import annotations

import contextlib
import os
import re
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pexpect
import pyte

from tests.support.paths import REPOSITORY

ENTER, CTRL_C, CTRL_D, CTRL_R, TAB, UP, ALT_ENTER = "\r", "\x03", "\x04", "\x12", "\t", "\x1b[A", "\x1b\r"
TIMEOUT_S = 20.0
_COLUMNS, _LINES = 80, 24


class Terminal:
    """A program on a terminal of 80x24, which is emulated: it wraps, scrolls, and answers where its cursor is."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._screen = pyte.HistoryScreen(_COLUMNS, _LINES, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        env = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment}
        self.child = pexpect.spawn(
            command[0], [*command[1:]], dimensions=(_LINES, _COLUMNS), env=env, timeout=None, cwd=REPOSITORY
        )
        self._screen.write_process_input = self._reply  # type: ignore[method-assign]
        self.output = b""

    def _reply(self, data: str) -> None:
        self.child.send(data)

    def pump(self, seconds: float = 0.05) -> bool:
        """Show what the program writes; False when it has ended."""
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.output += data
        self._stream.feed(data)
        return True

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without the blanks at the ends of lines."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """All lines that there are, also those that have left the screen."""
        above = [
            "".join(line[column].data for column in range(self._screen.columns)).rstrip()
            for line in self._screen.history.top
        ]
        return "\n".join([*above, *self.lines]).rstrip()

    @property
    def picture(self) -> str:
        """The screen as a text, down to its last line that has any."""
        return "\n".join(self.lines).rstrip()

    def styles_of(self, word: str) -> set[str]:
        """Colours and styles of the characters of the last place on the screen where ``word`` stands."""
        for row in range(self._screen.lines - 1, -1, -1):
            column = self._screen.display[row].rfind(word)
            if column >= 0:
                characters = [self._screen.buffer[row][column + offset] for offset in range(len(word))]
                names = ("bold", "italics")
                styles = {name for each in characters for name in names if getattr(each, name)}
                return styles | {each.fg for each in characters if each.fg != "default"}
        raise AssertionError(f"{word!r} is not on the screen:\n{self.picture}")

    def wait_for(self, text: str, timeout_s: float = TIMEOUT_S, *, times: int = 1) -> None:
        """Return when ``text`` has been shown so many times since the start."""
        self._wait(lambda: self.text.count(text) >= times, timeout_s, f"{text!r} was not shown {times} times")

    def wait_for_match(self, pattern: str, timeout_s: float = TIMEOUT_S) -> None:
        """Return when what is shown matches the regular expression somewhere."""
        self._wait(lambda: re.search(pattern, self.text) is not None, timeout_s, f"{pattern!r} was not shown")

    def wait_for_prompt(self, timeout_s: float = TIMEOUT_S) -> None:
        """Return when the last line that is not the toolbar's is an empty prompt."""
        self._wait(lambda: not self._last_prompt_is_used(), timeout_s, "no prompt")

    def _last_prompt_is_used(self) -> bool:
        line = self._screen.display[self._screen.cursor.y]
        return not line.startswith(">>> ") or self._screen.cursor.x != 4

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, line: str, timeout_s: float = TIMEOUT_S, *, pasted: bool = False) -> str:
        """Type or paste a line at the prompt, and wait for the next prompt; return what stands between the two."""
        self.wait_for_prompt()
        before, prompts = len(self.text.splitlines()) - self._below(), self._prompts
        if pasted:
            self.paste(line)
            self._wait(self._last_prompt_is_used, TIMEOUT_S, f"{line!r} was not pasted")
        self.type(ENTER if pasted else line + ENTER)
        self._wait(lambda: self._prompts > prompts, timeout_s, f"no prompt after {line!r}")
        self.wait_for_prompt()
        lines = self.text.splitlines()
        return "\n".join(lines[before : len(lines) - self._below() - 1]).strip("\n")

    @property
    def _prompts(self) -> int:
        """How many there were. At each a program asks the terminal to mark what is pasted, if it asks for anything."""
        return max(self.output.count(b"\x1b[?2004h"), self.output.count(b"\n>>> "))

    def _wait(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            is_alive = self.pump()
            assert time.monotonic() < deadline and (is_alive or condition()), f"{problem}:\n{self.text}"

    def _below(self) -> int:
        """Lines under the cursor's that have something on them: the toolbar."""
        return len(self.picture.splitlines()) - 1 - self._screen.cursor.y

    def paste(self, text: str) -> None:
        """As terminals do that mark what was pasted."""
        self.child.send(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        self._screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as it does for programs that do not edit lines themselves."""
        return bool(termios.tcgetattr(self.child.child_fd)[3] & termios.ECHO)

    def ended(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit code, when the program has ended; negative for a signal."""
        deadline = time.monotonic() + timeout_s
        while self.pump():
            assert time.monotonic() < deadline, f"it has not ended:\n{self.text}"
        self.child.wait()
        return int(-self.child.signalstatus if self.child.exitstatus is None else self.child.exitstatus)


@contextlib.contextmanager
def on_a_terminal(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """The program on a terminal; it is gone at the end."""
    terminal = Terminal(command, environment or {})
    try:
        yield terminal
    finally:
        terminal.child.close(force=True)
