"""What callers do to an engine, and how they see what became of it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineError, EngineState
from shared_engine.launch.spec import engine_spec
from shared_engine.runtime.directory import RuntimeDir, runtime_dir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import EnsureReady, Reply, Request, StartProgress, decode, encode
from tests.support.processes import processes_of_group
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = "Hello! How can I help you today?"
SETTLE_S = 15.0


def hello(engine: Engine) -> str:
    """An answer, from an engine that is ready."""
    return engine.chat(HELLO).text


def error_of(engine: Engine) -> EngineError:
    with pytest.raises(EngineError) as caught:
        engine.chat(HELLO)
    return caught.value


@contextlib.contextmanager
def calls(*engines: Engine) -> Iterator[list[Future[str]]]:
    """A request to each at the same time; they must end by themselves."""
    with ThreadPoolExecutor(len(engines)) as pool:
        yield [pool.submit(hello, engine) for engine in engines]


def wait_for(engine: Engine, state: EngineState) -> None:
    wait_until(lambda: engine.status().state is state, SETTLE_S, f"{state}, it is {engine.status()}")


def directory_of(engine: Engine) -> RuntimeDir:
    return runtime_dir(engine_spec(engine.settings).key)


def log_of(engine: Engine) -> str:
    return directory_of(engine).log.read_text(errors="replace")


def transitions(engine: Engine) -> list[str]:
    """As the supervisors logged them: ``ready -> asleep``."""
    return re.findall(r"supervisor: (\w+ -> \w+), ", log_of(engine))


def complaints(engine: Engine) -> list[str]:
    """Tracebacks of the supervisor's own code: what it did not expect."""
    return re.findall(r'File ".*/shared_engine/.*', log_of(engine))


def server_group(engine: Engine) -> list[int]:
    pid = engine.status().server_pid
    assert pid is not None
    return processes_of_group(pid)


def server_pid(engine: Engine) -> int:
    pid = engine.status().server_pid
    assert pid is not None
    return pid


def supervisor_pid(engine: Engine) -> int:
    pid = engine.status().supervisor_pid
    assert pid is not None
    return pid


class Asking:
    """A request to an engine's supervisor, as its clients make it, without their patience."""

    def __init__(self, engine: Engine, request: Request | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SETTLE_S)
        self._lines = self._socket.makefile("rb")
        self._socket.connect(str(directory_of(engine).control_socket))
        self._socket.sendall(request if isinstance(request, bytes) else encode(request))

    def hang_up(self) -> None:
        self._lines.close()
        self._socket.close()

    def next(self) -> Reply | None:
        """The next reply, which may tell of progress; None where the supervisor exits without one."""
        line = self._lines.readline()
        return decode(line) if line else None

    def answer(self) -> Reply | None:
        """The last reply; None where the supervisor exits without one."""
        with self._socket, self._lines:
            while isinstance(reply := self.next(), StartProgress):
                pass
            return reply


def ensure_ready(engine: Engine, **wishes: Any) -> Asking:
    policy = KeepPolicy(**{"idle_ttl_s": 60, "standby_ttl_s": 60, "start_timeout_s": 20, **wishes})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return Asking(engine, EnsureReady(policy, environment))


def journal(path: Path) -> list[tuple[str, str, float]]:
    """What the fakes noted of their use of the device: event, seed, time; in order."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = [line.split() for line in lines]
    return sorted(((event, seed, float(when)) for event, seed, when in rows), key=lambda row: row[2])
