"""vLLM's output, kept: the last lines in memory to explain failures, all of it in a file."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from pathlib import Path

MAX_FILE_BYTES = 5_000_000
MAX_LINE_BYTES = 16_384
RING_LINES = 400
TAIL_LINES = 12


class EngineLog:
    """vLLM's output: the last lines in memory, all of it in a file that is rotated once. Never fatal."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ring: collections.deque[str] = collections.deque(maxlen=RING_LINES)
        self._pending = b""
        self._written = path.stat().st_size if path.exists() else 0
        self.bytes_fed = 0
        """How much vLLM has written in all; a start that hangs writes nothing."""

    def feed(self, data: bytes) -> None:
        self.bytes_fed += len(data)
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._pending = self._pending[-MAX_LINE_BYTES:]  # a line without end must not grow without end
        self._ring.extend(line.decode(errors="replace").rstrip() for line in lines)
        self._write(data)

    def note(self, text: str) -> None:
        """A line of the supervisor's own; not part of the ring, which explains failures of vLLM."""
        self._write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} vllm-local supervisor: {text}\n".encode())

    def clear(self) -> None:
        """Forget the lines of the start before."""
        self._ring.clear()

    def lines(self) -> list[str]:
        return [line for line in self._ring if line]

    def tail(self) -> tuple[str, ...]:
        return tuple(self.lines()[-TAIL_LINES:])

    def _write(self, data: bytes) -> None:
        # A full disk must not stop the engine, nor the draining of its pipe.
        with contextlib.suppress(OSError):
            if self._written > MAX_FILE_BYTES:
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._written = 0
            with open(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
                file.write(data)
            self._written += len(data)
