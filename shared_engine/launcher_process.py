"""The launcher as its supervisor sees it: a child with a command pipe, an event pipe and a log pipe.

Standard library only. What the launcher does, and the words of both pipes, stand in launcher.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).with_name("launcher.py")


class LauncherProcess:
    """Started on construction. The file descriptors are for the caller to watch; reading never blocks.

    Raises:
        OSError: the interpreter can't be run.
    """

    def __init__(self, python: str, environment: Mapping[str, str], folder: Path) -> None:
        self.is_preloaded = False
        self.events_fd, events_w = os.pipe()
        log_r, log_w = os.pipe()
        self.log_fd: int | None = log_r
        """None once all who could write have ended."""
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(LAUNCHER), "--events-fd", str(events_w)],
                stdin=subprocess.PIPE,
                stdout=log_w,
                stderr=log_w,
                pass_fds=(events_w,),
                env=dict(environment),
                cwd=folder,
            )
        except OSError:
            os.close(self.events_fd)
            os.close(log_r)
            raise
        finally:
            os.close(events_w)
            os.close(log_w)
        self.pid = self._process.pid
        self._pending = b""
        for fd in (self.events_fd, log_r):
            os.set_blocking(fd, False)

    def start_server(self, argv: list[str], generation: int) -> None:
        self._tell({"op": "start", "argv": argv, "generation": generation})

    def read_events(self) -> list[dict[str, Any]] | None:
        """What has happened since; None when the launcher has ended."""
        try:
            data = os.read(self.events_fd, 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    @staticmethod
    def read_log(fd: int) -> bytes | None:
        """Some output, empty when none is waiting; None when all who could write have ended."""
        try:
            return os.read(fd, 1 << 16) or None
        except BlockingIOError:
            return b""

    def end(self, grace_s: float) -> None:
        """See it gone; it kills its server on the way out."""
        self._tell({"op": "exit"})
        deadline = time.monotonic() + grace_s
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of the pipes of a launcher that has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.poll()
        os.close(self.events_fd)

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the end of the events tells the same
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
