"""What was typed in earlier chats: a private file, of the last entries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from shared_engine.machine.home import expanded

VARIABLE = "VLLM_LOCAL_CHAT_HISTORY"
"""``off``, or another file."""
MAX_ENTRIES = 1000
_MAX_BYTES = 1 << 20
_ENTRY = b"\n# "
_HALF = re.compile("[\ud800-\udfff]")


def history_file(environment: Mapping[str, str]) -> Path | None:
    """None where none is to be kept."""
    chosen = environment.get(VARIABLE, "")
    if chosen.lower() in ("off", "0", "no", "false", "none"):
        return None
    if chosen and chosen.lower() not in ("on", "1", "yes", "true"):
        return expanded(chosen)
    base = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return expanded(base) / "vllm-local" / "chat_history"


def readable(typed: str) -> str:
    """What was typed, with a mark in place of each byte that is not UTF-8, which Python reads as half a character."""
    return _HALF.sub("\ufffd", typed)


class PrivateHistory(FileHistory):
    """A file that only its owner can read. Where it can't be written, entries last as long as the chat.

    Attributes:
        is_on: entries are written.
        problem: why they can't be.
    """

    def __init__(self, file: Path) -> None:
        self.is_on = True
        self.problem: str | None = None
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            file.chmod(0o600)
            _trim(file)
        except OSError as exc:
            self._give_up(exc)
        super().__init__(str(file))

    def load_history_strings(self) -> list[str]:
        return [] if self.problem else list(super().load_history_strings())

    def store_string(self, string: str) -> None:
        if not self.is_on or self.problem:
            return
        try:
            super().store_string(readable(string))
        except OSError as exc:
            self._give_up(exc)

    def switch(self, is_on: bool) -> str:
        """Write entries from now on, or none; say what was done."""
        self.is_on = is_on
        return self.problem or ("what you type is kept" if is_on else "what you type from now on is not kept")

    def _give_up(self, exc: OSError) -> None:
        self.problem = f"what you type is not kept for later chats: {exc}"


def open_history(file: Path | None) -> History:
    return InMemoryHistory() if file is None else PrivateHistory(file)


def _trim(file: Path) -> None:
    if file.stat().st_size <= _MAX_BYTES:
        return
    kept = file.read_bytes().split(_ENTRY)[-MAX_ENTRIES:]
    shorter = file.with_suffix(".new")
    with open(os.open(shorter, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(b"".join(_ENTRY + entry for entry in kept)[-_MAX_BYTES:])
    shorter.replace(file)
