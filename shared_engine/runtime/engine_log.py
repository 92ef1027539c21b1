"""vLLM's output, kept: the last lines in memory to explain failures, all of it in a file. Without secrets."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from shared_engine.runtime.redacted import redacted

MAX_FILE_BYTES = 5_000_000
MAX_LINE_BYTES = 16_384
RING_LINES = 400
TAIL_LINES = 12
SUPERVISOR = "vllm-local supervisor"


class EngineLog:
    """vLLM's output: the last lines in memory, all of it in a file that is rotated once. Never fatal.

    Args:
        level: notes below it are left out; vLLM's own lines never are.
    """

    def __init__(self, path: Path, level: int = logging.INFO) -> None:
        self._path = path
        self._level = level
        self._ring: collections.deque[str] = collections.deque(maxlen=RING_LINES)
        self._pending = b""
        self._unwritten = b""
        self._written = path.stat().st_size if path.exists() else 0
        self.environment: Mapping[str, str] = {}
        """Of the processes that write it: no secret in that is written, beside those of this process."""
        self.bytes_fed = 0
        """How much vLLM has written in all; a start that hangs writes nothing."""

    def feed(self, data: bytes) -> None:
        self.bytes_fed += len(data)
        unwritten = self._unwritten + data
        # Whole lines, and states of a progress bar, at a time: half of a secret would not be known for one. A carriage
        # return at the end may be the first half of a line's end.
        end = max(unwritten.rfind(b"\n"), unwritten.rfind(b"\r", 0, len(unwritten) - 1)) + 1
        if end == 0 and len(unwritten) > MAX_LINE_BYTES:
            end = len(unwritten)  # a line without end must not grow without end
        self._unwritten = unwritten[end:]
        if end:
            self._keep(unwritten[:end])

    def note(self, text: str, level: int = logging.INFO) -> None:
        """A line of the supervisor's own; not part of the ring, which explains failures of vLLM."""
        if level < self._level:
            return
        self._write_rest()
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {logging.getLevelName(level)} {SUPERVISOR}: "
        self._write(f"{head}{redacted(text, self.environment)}\n".encode(errors="replace"))

    def clear(self) -> None:
        """Forget the lines of the start before."""
        self._ring.clear()

    def lines(self) -> list[str]:
        return [line for line in self._ring if line]

    def tail(self) -> tuple[str, ...]:
        return tuple(self.lines()[-TAIL_LINES:])

    def _keep(self, data: bytes) -> None:
        # As it came, but for secrets: whatever is not UTF-8 stays.
        text = redacted(data.decode(errors="surrogateescape"), self.environment)
        written = text.encode(errors="surrogateescape")
        self._write(written)
        *lines, self._pending = (self._pending + written).split(b"\n")
        self._pending = self._pending[-MAX_LINE_BYTES:]
        self._ring.extend(line.decode(errors="replace").rstrip() for line in lines)

    def _write_rest(self) -> None:
        """What has not come to the end of its line, as a line of its own."""
        rest, self._unwritten = self._unwritten, b""
        if rest:
            self._keep(rest.rstrip(b"\r") + b"\n")

    def _write(self, data: bytes) -> None:
        # A full disk must not stop the engine, nor the draining of its pipe.
        with contextlib.suppress(OSError):
            if self._written > MAX_FILE_BYTES:
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._written = 0
            with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
                file.write(data)
            self._written += len(data)
