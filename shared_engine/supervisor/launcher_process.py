"""The launcher as its supervisor sees it, and the server it forked.

A child with a command pipe, an event pipe and a log pipe. What the launcher does is in launcher.py, the messages
on the pipes are in runtime/launcher_messages.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shared_engine.launcher import LAUNCHER
from shared_engine.machine.proc import is_any_stopped
from shared_engine.machine.process_group import GIVE_UP_S
from shared_engine.runtime.launcher_messages import (
    Command,
    Event,
    Exit,
    Exited,
    ImportFailed,
    Preloaded,
    Started,
    StartServer,
    read_event,
    write_command,
)
from shared_engine.supervisor.ends import Exit as ProcessExit

READ_BYTES = 1 << 16
FORK_TIMEOUT_S = 5.0
EXIT_CODE_S = 0.2
DRAIN_BYTES = 1 << 22  # more than a pipe holds: what those who have ended had written


class ServerProcess:
    """A server the launcher has forked: the leader of a session and process group of its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[ProcessExit] = asyncio.get_running_loop().create_future()
        """Which of its processes has ended first, and how. Whatever the exit code: nobody here asked for it."""

    def has_ended(self, exit: ProcessExit) -> None:
        """One of its processes has. The first one counts."""
        if not self.ended.done():
            self.ended.set_result(exit)


class LauncherProcess:
    """Started on construction, on the running event loop, which it uses to read the launcher's messages.

    Args:
        on_output: gets each piece of what launcher and server write to stdout and stderr.

    Raises:
        OSError: the interpreter can't be run.
    """

    def __init__(
        self, python: str, environment: Mapping[str, str], folder: Path, on_output: Callable[[bytes], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self._events_fd, events_w = os.pipe()
        self._log_fd, log_w = os.pipe()
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
            os.close(self._events_fd)
            os.close(self._log_fd)
            raise
        finally:
            os.close(events_w)
            os.close(log_w)
        self.pid = self._process.pid
        self.preloaded: asyncio.Future[Preloaded | ImportFailed | None] = self._loop.create_future()
        """How importing vLLM went; None if the launcher ended before."""
        self.has_ended = False
        self._starting: asyncio.Future[ServerProcess | None] | None = None
        self._server: ServerProcess | None = None
        self._pending = b""
        for fd, callback in ((self._events_fd, self._read_events), (self._log_fd, self._read_log)):
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, callback)

    async def start_server(self, argv: list[str]) -> ServerProcess | None:
        """Have it fork a server; None if the launcher has ended.

        Cancelling this forgets nothing: the server is there for ``forked_server``.
        """
        if self.has_ended:
            return None
        self._starting = self._loop.create_future()
        self._server = None
        self._send(StartServer(tuple(argv)))
        return await asyncio.shield(self._starting)

    @property
    def is_ready(self) -> bool:
        """True when it can fork a server at once."""
        is_preloaded = self.preloaded.done() and isinstance(self.preloaded.result(), Preloaded)
        is_forking = self._starting is not None and not self._starting.done()
        return is_preloaded and not is_forking and not self.has_ended and not self.is_stopped

    async def forked_server(self) -> ServerProcess | None:
        """The server it has forked, after waiting for one that is just being forked; None if there is none."""
        if self._starting is not None:
            await asyncio.wait([self._starting], timeout=FORK_TIMEOUT_S)
        return self._server

    def forget_server(self) -> None:
        """Its process group is gone; the number may be another's soon."""
        self._server = None
        if self._starting is not None and self._starting.done():
            self._starting = None

    def drain_log(self) -> None:
        """Read what was written until now: the cause of an end stands in the last lines."""
        read = 0
        while read < DRAIN_BYTES and (data := self._read_log()):
            read += len(data)

    @property
    def is_stopped(self) -> bool:
        """By a signal: it does nothing any more, and does not collect the server either."""
        return is_any_stopped([self.pid])

    async def end(self, grace_s: float) -> None:
        """See it gone; it kills its server on the way out. One that the kernel holds is left after GIVE_UP_S."""
        self._send(Exit())
        kill_at = time.monotonic() + (0.0 if self.is_stopped else grace_s)
        while self._process.poll() is None and time.monotonic() < kill_at + GIVE_UP_S:
            if time.monotonic() > kill_at:
                self._process.kill()
            await asyncio.sleep(0.01)
        self.drain_log()
        self.close()

    def close(self) -> None:
        """Let go of the pipes of a launcher that has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._close_fd("_log_fd")
        self._close_fd("_events_fd")

    def _send(self, command: Command) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the end of the events shows it as well
            self._process.stdin.write(write_command(command))
            self._process.stdin.flush()

    def _read_events(self) -> None:
        try:
            data = os.read(self._events_fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            return self._launcher_ended()
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            try:
                event = read_event(line)
            except ValueError as exc:  # of another release: nothing more can be understood
                self._on_output(f"vllm-local: {exc}\n".encode())
                self._process.kill()
                return self._launcher_ended()
            if event is not None:
                self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Preloaded | ImportFailed):
            self.drain_log()
            self.preloaded.set_result(event)
        elif isinstance(event, Started):
            assert self._starting is not None
            self._server = ServerProcess(event.pid)
            self._starting.set_result(self._server)
        elif isinstance(event, Exited) and self._server is not None and event.pid == self._server.pid:
            self._server_ended(ProcessExit("vLLM", event.returncode, is_leader=True))

    def _launcher_ended(self) -> None:
        """Nobody asked it to."""
        self.has_ended = True
        self._close_fd("_events_fd")
        if not self.preloaded.done():
            self.drain_log()
            self.preloaded.set_result(None)
        if self._starting is not None and not self._starting.done():
            self._starting.set_result(None)
        self._server_ended(self.exit("the process that started vLLM"))

    def exit(self, name: str) -> ProcessExit:
        """How the launcher itself has ended, which it has just told by closing its pipe, or is about to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_CODE_S)
        return ProcessExit(name, self._process.poll())

    def _server_ended(self, exit: ProcessExit) -> None:
        self.drain_log()
        if self._server is not None:
            self._server.has_ended(exit)

    def _read_log(self) -> bytes:
        """Take some of what is there; empty when there is nothing (yet, or ever again)."""
        if self._log_fd < 0:
            return b""
        try:
            data = os.read(self._log_fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if data:
            self._on_output(data)
        else:
            self._close_fd("_log_fd")
        return data

    def _close_fd(self, name: str) -> None:
        fd = getattr(self, name)
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
            setattr(self, name, -1)
