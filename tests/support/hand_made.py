"""Runtime directories made by hand, with a supervisor that is ours: for tests of those who look on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir
from shared_engine.runtime.messages import Request, decode
from shared_engine.runtime.record import EngineState, Record, boot_id, write_record
from tests.support.paths import REPOSITORY

KEY = "0123456789abcdef"
OTHER_KEY = "0124ffffffffffff"

# Holds the lock, has a child, and answers the control socket as it was told to.
SUPERVISOR = """
import fcntl, os, socket, subprocess, sys
sys.path.append(sys.argv[3])
from shared_engine.runtime.messages import Gone, Refusal, Refused, Shutdown, decode, encode
os.chdir(sys.argv[1])
lock = open("supervisor.lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
child = subprocess.Popen(["sleep", "600"])
listener = socket.socket(socket.AF_UNIX)
listener.bind("control.sock")
listener.listen()
print(child.pid, flush=True)
try:
    while True:
        connection, _ = listener.accept()
        with connection:
            line = connection.makefile().readline()
            if not line:
                continue
            with open("asked", "a") as asked:
                asked.write(line)
            request = decode(line)
            if sys.argv[2] == "busy" and request != Shutdown(force=True):
                connection.sendall(encode(Refused(Refusal.BUSY)))
                continue
            connection.sendall(encode(Gone()))
            if isinstance(request, Shutdown):
                break
finally:
    child.kill()
    child.wait()
"""


class HandMade:
    """One engine's runtime directory, with a supervisor that is ours."""

    def __init__(self, root: Path, key: str, supervisor: str | None = "obey", **fields: Any) -> None:
        self.directory = RuntimeDir(root / key)
        self.directory.prepare()
        self._process: subprocess.Popen[str] | None = None
        self.pid = self.child_pid = 0
        if supervisor is not None:
            command = [sys.executable, "-S", "-c", SUPERVISOR, str(self.directory.path), supervisor, str(REPOSITORY)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            self.pid, self.child_pid = self._process.pid, int(self._process.stdout.readline())
        self.record = Record(
            **{
                "state": EngineState.READY,
                "model": "/models/tiny_chat",
                "vllm_version": "0.32.0",
                "start_number": 2,
                "supervisor_pid": self.pid,
                "server_pid": self.child_pid,
                "socket": str(self.directory.server_socket(2)),
                "boot_id": boot_id(),
                "state_since": time.time(),
                **fields,
            }
        )
        write_record(self.directory.record, self.record)

    def asked(self) -> list[Request]:
        return [decode(line.encode()) for line in (self.directory.path / "asked").read_text().splitlines()]

    def close(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                with suppress(ProcessLookupError):  # it may be ending, as the test asked it to
                    os.kill(self.child_pid, 9)
                self._process.kill()
            self._process.communicate()


MakeEngine = Callable[..., HandMade]


@contextmanager
def own_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory, not there yet, of a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vlt-", dir="/tmp") as folder:
        monkeypatch.setenv(ROOT_VARIABLE, f"{folder}/root")
        yield Path(folder) / "root"
