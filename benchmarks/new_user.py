"""A user with an empty home: what they type runs there as in a terminal, and is timed.

Knows nothing of what is typed. Processes that stay behind are found as descendants of this one, which adopts them.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from step_runner import descendants

from shared_engine.machine.proc import memory_bytes
from shared_engine.machine.process_group import reap_children

LIMIT_S = 1800.0
POLL_S = 0.05
LOG_LINES = 40
# What a new user has not set. pip's own settings stay, but for its cache: they say where this machine's packages are.
_NOT_SET = ("VLLM_", "XDG_", "PYTHON", "HF_", "TORCH", "VIRTUAL_ENV", "UV_", "PIP_CACHE_DIR", "PIP_NO_CACHE_DIR")
_LISTENS = "0A"
_LOOPBACK = ("0100007F", "01000000")  # 127.0.0.1 and ::1, as /proc/net writes them


class UserError(Exception):
    """What was typed did not do what it is timed for; with the end of what it wrote."""


@dataclass(frozen=True)
class Seen:
    """What the user saw after a line was typed.

    Attributes:
        first_s: until something stood on the screen; None where nothing did.
        total_s: until the prompt was back.
        lines: (seconds, text) of each line of output.
    """

    first_s: float | None
    total_s: float
    lines: tuple[tuple[float, str], ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.lines)


@dataclass(frozen=True)
class Behind:
    """What runs while nobody waits for an answer.

    Attributes:
        ports: that other machines can reach.
    """

    processes: int
    memory_mb: float
    ports: tuple[int, ...]


class NewUser:
    """Whoever types in ``home``.

    Args:
        home: an empty folder.
        environment: what this machine has set beyond a home and a path.
    """

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self._log = home / "errors.log"
        scratch = home / "tmp"  # torch keeps what it compiles there, which another user must not find
        scratch.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_SET)}
        python = Path(sys.base_prefix) / "bin"
        self.environment = {
            **kept,
            "HOME": str(home),
            "TMPDIR": str(scratch),
            "TERM": "xterm-256color",
            "PATH": f"{home}/.venv/bin:{python}:{os.environ['PATH']}",  # what `. .venv/bin/activate` does
            **environment,
        }

    def types(self, line: str) -> Seen:
        """Run a line; return when the prompt is back.

        Raises:
            UserError: it failed, or took more than LIMIT_S.
        """
        began = time.perf_counter()
        screen, terminal = pty.openpty()
        try:
            with open(self._log, "ab") as errors:
                process = subprocess.Popen(
                    ["bash", "-c", line],
                    cwd=self.home,
                    env=self.environment,
                    stdin=terminal,
                    stdout=terminal,
                    stderr=errors,
                    start_new_session=True,
                )
            os.close(terminal)
            pieces = list(_pieces(screen, process, began))
            total_s = time.perf_counter() - began
        finally:
            os.close(screen)
        seen = Seen(pieces[0][0] if pieces else None, total_s, tuple(_lines(pieces)))
        if process.wait():
            raise UserError(f"{line!r} ended with {process.returncode}:\n{seen.text}\n{self.log_end()}")
        return seen

    def starts(self, line: str, port: int) -> Server:
        """Run a line in another terminal, where it stays; return at once."""
        with open(self._log, "ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Server(self, process, port)

    def log_end(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-LOG_LINES:])

    def disk_gb(self) -> float:
        """Of all that lies in the home."""
        return sum(path.lstat().st_blocks * 512 for path in self.home.rglob("*")) / 1e9


class Server:
    """A program in another terminal."""

    def __init__(self, user: NewUser, process: subprocess.Popen[bytes], port: int) -> None:
        self._user, self._process, self._port = user, process, port

    def wait_until_healthy(self) -> None:
        """Return when ``/health`` answers.

        Raises:
            UserError: it ended, or took more than LIMIT_S.
        """
        deadline = time.monotonic() + LIMIT_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the server does not answer:\n{self._user.log_end()}")
            time.sleep(POLL_S)

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def interrupt(self) -> None:
        """Ctrl-C in its terminal; return when it is gone."""
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(60)


def _pieces(screen: int, process: subprocess.Popen[bytes], began: float) -> Iterable[tuple[float, bytes]]:
    """(seconds, output) as it comes, until the process has ended; what it has left running is not waited for."""
    deadline = time.monotonic() + LIMIT_S
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready = select.select([screen, ended], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                os.killpg(process.pid, signal.SIGKILL)
            data = b""
            if screen in ready:
                with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
                    data = os.read(screen, 1 << 16)
            if data:
                yield time.perf_counter() - began, data
            elif ready:
                process.wait()
                return
    finally:
        os.close(ended)


def _lines(pieces: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, str]]:
    """(seconds, text) of whole lines; the time is that of the line's end."""
    rest = b""
    seconds = 0.0
    for seconds, data in pieces:
        *whole, rest = (rest + data).split(b"\n")
        yield from ((seconds, line.decode(errors="replace").rstrip("\r")) for line in whole)
    if rest:
        yield seconds, rest.decode(errors="replace")


def left_running() -> Behind:
    """What runs below this process."""
    reap_children()
    pids = descendants()
    return Behind(
        processes=len(pids),
        memory_mb=sum(memory_bytes(pid) or 0 for pid in pids) / 1e6,
        ports=tuple(sorted(_ports(pids))),
    )


def _ports(pids: Iterable[int]) -> set[int]:
    held: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(os.readlink(file))
    found: set[int] = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == _LISTENS and f"socket:[{fields[9]}]" in held and not address.endswith(_LOOPBACK):
                found.add(int(port, 16))
    return found
