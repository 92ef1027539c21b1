"""The control socket of one engine: Control asks the supervisor, serve_callers listens for it.

One request a connection. A caller that hangs up only stops waiting: what it waited for goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import cast

from shared_engine.errors import EngineBusyError, EngineError
from shared_engine.machine.proc import is_stopped
from shared_engine.machine.sockets import can_read, peer_process
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import (
    LAST_REPLIES,
    EnsureReady,
    Evict,
    Gone,
    Keep,
    MakeRoom,
    NotUnderstood,
    Outcome,
    Ready,
    Refused,
    Reply,
    Request,
    Shutdown,
    StartFailed,
    StartProgress,
    WhatBecameOf,
    decode,
    encode,
)
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import is_supervised, read_record

BACKLOG = 256
MAX_LINE_BYTES = 1 << 24  # a request carries the caller's environment, a reply the log's last lines
POLL_S = 0.02
STOPPED_POLL_S = 0.5
EXIT_S = 30.0  # how long a supervisor that has agreed may take to end what it owns
_NOBODY_LISTENS = (errno.ENOENT, errno.ECONNREFUSED)
# Of a listener whose queue is full: asyncio takes the socket for connected, and the first use of it fails.
_QUEUE_IS_FULL = (errno.EAGAIN, errno.ENOTCONN)


class OtherReleaseError(EngineError):
    """The supervisor understands other messages."""


class Control:
    """Asks the supervisor of one engine; needs nothing but its directory.

    Where there is no supervisor, or none any more, what is asked of it gives None.

    Every method that asks raises:
        TimeoutError: it did not reply in time (``evict`` and ``shutdown``: an EngineError that says so).
        EngineError: it is of another release, which understands other messages.
        OSError: the socket can't be used, as without a file descriptor left.
    """

    def __init__(self, directory: RuntimeDir) -> None:
        self.directory = directory

    async def is_listening(self) -> bool:
        """True when a supervisor takes requests."""
        try:
            _, writer = await asyncio.open_unix_connection(str(self.directory.control_socket))
        except OSError as exc:
            if exc.errno in (*_NOBODY_LISTENS, *_QUEUE_IS_FULL):
                return exc.errno in _QUEUE_IS_FULL
            raise
        writer.close()
        return True

    async def ensure_ready(
        self,
        policy: KeepPolicy,
        environment: Mapping[str, str],
        timeout: float,
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> Ready | StartFailed | None:
        """Have the engine started, and wait for the outcome, ``timeout`` seconds at most."""
        request = EnsureReady(policy, environment)
        return cast("Ready | StartFailed | None", await self._ask(request, timeout, on_progress))

    async def what_became_of(self, start_number: int, timeout: float) -> Outcome | None:
        """How the server of that start ended; RUNNING where it has not, as far as the supervisor knows."""
        return cast("Outcome | None", await self._ask(WhatBecameOf(start_number), timeout))

    async def keep(self, timeout: float, *, idle_ttl_s: float | None = None, pinned: bool | None = None) -> None:
        """Have the engine kept so from now on, until its next start; see the message."""
        await self._ask(Keep(idle_ttl_s, pinned), timeout)

    async def make_room(self, timeout: float) -> Gone | Refused | NotUnderstood | None:
        """Have the engine evicted for another one's sake, if it is idle and may go."""
        try:
            return cast("Gone | Refused | NotUnderstood | None", await self._ask(MakeRoom(), timeout))
        except OtherReleaseError:
            return NotUnderstood()

    async def evict(self, timeout: float) -> None:
        """Return when the server's processes are gone.

        Raises:
            EngineBusyError: requests were in flight for all of ``timeout`` seconds.
            EngineError: the supervisor does not reply.
        """
        await self._end(Evict(), timeout)

    async def shutdown(self, timeout: float, *, force: bool = False) -> None:
        """Return when no process of the engine is left.

        Raises:
            EngineBusyError: without ``force``, requests were in flight for all of ``timeout`` seconds.
            EngineError: the supervisor does not reply, or does not exit.
        """
        supervisor = await self._process()
        watching = asyncio.create_task(self._end_when_stopped()) if force else None
        try:
            await self._end(Shutdown(force), timeout)
            if supervisor is not None:
                await _ended(supervisor)  # its lock is free a moment before its process has ended
        finally:
            if watching is not None:
                watching.cancel()
            if supervisor is not None:
                os.close(supervisor)

    async def end_stopped(self) -> bool:
        """End a supervisor that was stopped by a signal, and would never reply; its engine goes with it.

        Returns:
            True where that was so.
        """
        supervisor = await self._process()
        if supervisor is None:
            return False
        try:
            if not is_stopped(supervisor):
                return False
            with contextlib.suppress(ProcessLookupError):  # it ends meanwhile
                signal.pidfd_send_signal(supervisor, signal.SIGKILL)
            await _ended(supervisor)
            return True
        finally:
            os.close(supervisor)

    async def _end_when_stopped(self) -> None:
        while True:
            await self.end_stopped()
            await asyncio.sleep(STOPPED_POLL_S)

    async def _process(self) -> int | None:
        """The supervisor's process, as ``open_process`` gives it; None where there is none, too."""
        try:
            _, writer = await asyncio.open_unix_connection(str(self.directory.control_socket))
            with contextlib.closing(writer):
                return peer_process(writer.get_extra_info("socket"))
        except OSError:
            return None  # what is asked of it next tells why

    async def _end(self, request: Evict | Shutdown, timeout: float) -> None:
        if not self.directory.lock.exists():
            return  # it was never started here
        deadline = time.monotonic() + timeout
        while True:
            try:
                reply = await self._ask(request, deadline + EXIT_S - time.monotonic())
            except TimeoutError:
                raise EngineError(f"the supervisor of {self.name} does not reply; see {self.directory.log}") from None
            if isinstance(request, Evict):
                if reply is None or isinstance(reply, Gone):
                    return
            elif reply is None and not is_supervised(self.directory):
                return  # not before: one that was being launched meanwhile may have taken its place
            if isinstance(reply, Refused) and time.monotonic() >= deadline:
                raise EngineBusyError(f"requests were in flight for {timeout:g} s: {self.name} was not stopped")
            if time.monotonic() > deadline + EXIT_S:
                raise EngineError(f"the supervisor of {self.name} did not exit; see {self.directory.log}")
            await asyncio.sleep(POLL_S)

    @property
    def name(self) -> str:
        """The engine's model, for messages; its key where there is no record."""
        record = read_record(self.directory.record)
        return self.directory.path.name if record is None else record.model

    async def _ask(
        self, request: Request, timeout: float, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> Reply | None:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return await self._ask_once(request, on_progress)
                except ConnectionError:
                    return None
                except OSError as exc:
                    if exc.errno in _NOBODY_LISTENS:
                        return None
                    if exc.errno not in _QUEUE_IS_FULL:
                        raise
                await asyncio.sleep(POLL_S)

    async def _ask_once(self, request: Request, on_progress: Callable[[Progress], None]) -> Reply | None:
        reader, writer = await asyncio.open_unix_connection(str(self.directory.control_socket), limit=MAX_LINE_BYTES)
        with contextlib.closing(writer):
            writer.write(encode(request))
            while True:
                try:
                    line = await reader.readline()
                    if not line.endswith(b"\n"):
                        return None  # cut off: the supervisor has ended
                    reply = decode(line)
                except ValueError:  # no message, or a line without end
                    reply = NotUnderstood()
                if isinstance(reply, StartProgress):
                    on_progress(reply.progress)
                elif isinstance(reply, LAST_REPLIES[type(request)]):
                    return reply
                else:
                    raise OtherReleaseError(
                        f"the supervisor of {self.name} is of another release of vllm-local, which ends it; "
                        f"see {self.directory.log}"
                    )


async def _ended(process: int) -> None:
    """Return when a process, by its file descriptor, has ended; or after EXIT_S seconds."""
    deadline = time.monotonic() + EXIT_S
    while not can_read(process) and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)


Send = Callable[[Reply], None]
"""Sends a reply ahead of the last one."""


async def serve_callers(path: Path, handle: Callable[[Request, Send], Awaitable[Reply | None]]) -> asyncio.Server:
    """Listen on ``path``. ``handle`` gives the last reply to a request; None where the connection just ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(reply: Reply) -> None:
            if not writer.is_closing():
                writer.write(encode(reply))

        try:
            try:
                line = await reader.readline()
                if not line.endswith(b"\n"):
                    return  # the caller has gone in the middle of it
                request = decode(line)
            except ValueError:  # no message, or a line without end
                send(NotUnderstood())
                return await writer.drain()
            handling = asyncio.ensure_future(handle(request, send))
            hanging_up = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({handling, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            hanging_up.cancel()
            if not handling.done():
                handling.cancel()
                return
            reply = handling.result()
            if reply is not None:
                send(reply)
                await writer.drain()
        except ConnectionError:
            pass  # the caller has gone
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, str(path), backlog=BACKLOG, limit=MAX_LINE_BYTES)
