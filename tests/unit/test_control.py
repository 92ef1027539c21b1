"""Asking a supervisor over its control socket: what comes back, who waits, and what is said when nobody replies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from shared_engine import EngineBusyError, EngineError
from shared_engine.machine.sockets import can_read
from shared_engine.runtime.control import Control, Send, serve_callers
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import (
    Evict,
    Fate,
    Gone,
    MakeRoom,
    NotUnderstood,
    Outcome,
    Ready,
    Refusal,
    Refused,
    Reply,
    Request,
    StartProgress,
    encode,
)
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import Record, write_record

Handle = Callable[[Request, Send], Awaitable[Reply | None]]
Serve = Callable[[Handle], Awaitable[None]]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def directory(root: Path) -> RuntimeDir:
    """Of an engine that was started once."""
    made = RuntimeDir(root / "0123456789abcdef")
    made.prepare()
    made.lock.touch()
    write_record(made.record, Record(model="org/model"))
    return made


@pytest.fixture
async def serve(directory: RuntimeDir) -> AsyncIterator[Serve]:
    """Has a handler reply on the directory's socket."""
    servers: list[asyncio.Server] = []

    async def begin(handle: Handle) -> None:
        servers.append(await serve_callers(directory.control_socket, handle))

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def listener(directory: RuntimeDir) -> Iterator[socket.socket]:
    """A socket that somebody else listens on, or nobody."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(directory.control_socket))
        made.listen()
        yield made


async def test_a_request_reaches_the_handler_and_its_replies_come_back(directory: RuntimeDir, serve: Serve) -> None:
    heard: list[Request] = []
    progress = Progress(StartPhase.WEIGHTS, 1, 2)

    async def handle(request: Request, send: Send) -> Reply:
        heard.append(request)
        send(StartProgress(progress))
        return Ready(4711, 3)

    await serve(handle)
    told: list[Progress] = []
    control = Control(directory)
    assert await control.is_listening()
    assert await control.ensure_ready(KeepPolicy(idle_ttl_s=5), {"A": "1"}, 10, told.append) == Ready(4711, 3)
    (request,) = heard
    assert (request.policy, request.environment) == (KeepPolicy(idle_ttl_s=5), {"A": "1"})  # type: ignore[union-attr]
    assert told == [progress]


async def test_without_a_supervisor_there_is_no_reply(directory: RuntimeDir, listener: socket.socket) -> None:
    control = Control(directory)
    listener.close()
    assert not await control.is_listening()
    assert await control.what_became_of(1, 5) is None
    directory.control_socket.unlink()
    assert await control.make_room(5) is None
    await control.evict(5)
    await control.shutdown(5)


@pytest.mark.parametrize("said", [b"", b'{"type": "Go'])
async def test_a_supervisor_that_ends_in_the_middle_gives_no_reply(
    directory: RuntimeDir, listener: socket.socket, said: bytes
) -> None:
    asking = asyncio.create_task(Control(directory).what_became_of(1, 20))
    connection, _ = await asyncio.to_thread(listener.accept)
    await asyncio.to_thread(connection.recv, 1000)
    connection.sendall(said)
    connection.close()
    assert await asking is None


@pytest.mark.slow
async def test_a_supervisor_that_says_nothing_is_not_waited_for(
    directory: RuntimeDir, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(directory)
    with pytest.raises(TimeoutError):
        await control.what_became_of(1, 0.1)
    monkeypatch.setattr("shared_engine.runtime.control.EXIT_S", 0.1)
    with pytest.raises(EngineError, match=r"the supervisor of org/model does not reply; see .*engine\.log"):
        await control.evict(0.1)


async def test_a_busy_engine_is_asked_again_until_the_time_is_over(directory: RuntimeDir, serve: Serve) -> None:
    asked: list[Request] = []

    async def handle(request: Request, _: Send) -> Reply:
        asked.append(request)
        return Refused(Refusal.BUSY) if len(asked) < 4 else Gone()

    await serve(handle)
    await Control(directory).evict(30)
    assert asked == [Evict()] * 4
    asked.clear()
    with pytest.raises(EngineBusyError, match="in flight for 0 s: org/model was not stopped"):
        await Control(directory).shutdown(0)


async def test_a_supervisor_of_another_release_is_told_so(directory: RuntimeDir, listener: socket.socket) -> None:
    asking = asyncio.create_task(Control(directory).make_room(20))
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        await asyncio.to_thread(connection.recv, 1000)
        connection.sendall(b'{"ok": false, "error": "unknown op"}\n')
    assert await asking == NotUnderstood()


async def test_a_request_of_another_release_is_not_understood_and_harms_nobody(
    directory: RuntimeDir, serve: Serve
) -> None:
    async def handle(request: Request, _: Send) -> Reply:
        assert request == MakeRoom()
        return Refused(Refusal.PINNED)

    await serve(handle)
    reader, writer = await asyncio.open_unix_connection(str(directory.control_socket))
    writer.write(b'{"op": "make_room"}\n')
    assert await reader.readline() == b'{"type": "NotUnderstood"}\n'
    writer.close()
    assert await Control(directory).make_room(5) == Refused(Refusal.PINNED)


async def test_who_hangs_up_ends_its_waiting_only(directory: RuntimeDir, serve: Serve) -> None:
    was_cancelled = asyncio.Event()
    may_end = asyncio.Event()

    async def handle(_: Request, __: Send) -> Reply:
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return Outcome(Fate.RUNNING)

    await serve(handle)
    staying = asyncio.create_task(Control(directory).what_became_of(1, 20))
    leaving = asyncio.create_task(Control(directory).what_became_of(1, 20))
    await asyncio.sleep(0.05)
    leaving.cancel()
    async with asyncio.timeout(10):
        await was_cancelled.wait()
        may_end.set()
        assert await staying == Outcome(Fate.RUNNING)


@pytest.mark.parametrize("said", [b'{"ok": false}\n', b'{"type": "NotUnderstood"}\n'])
async def test_ending_an_engine_of_another_release_is_refused_at_once(
    directory: RuntimeDir, listener: socket.socket, said: bytes
) -> None:
    ending = asyncio.create_task(Control(directory).evict(60))
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        await asyncio.to_thread(connection.recv, 1000)
        connection.sendall(said)
    with pytest.raises(EngineError, match="the supervisor of org/model is of another release of vllm-local"):
        await ending


@pytest.mark.slow
async def test_a_supervisor_with_a_full_queue_is_there_and_is_asked_again(directory: RuntimeDir) -> None:
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as callers:
        busy.bind(str(directory.control_socket))
        busy.listen(0)
        fill_queue(directory.control_socket, callers)
        assert await Control(directory).is_listening()
        with pytest.raises(TimeoutError):
            await Control(directory).what_became_of(1, 0.2)
        asking = asyncio.create_task(Control(directory).what_became_of(1, 20))
        await asyncio.sleep(0.05)
        while not asking.done():
            connection, _ = await asyncio.to_thread(busy.accept)
            with connection:
                connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError):  # of those who fill the queue
                    if await asyncio.to_thread(connection.recv, 1000):
                        connection.sendall(encode(Outcome(Fate.RUNNING)))
            await asyncio.sleep(0.05)
        assert await asking == Outcome(Fate.RUNNING)


def fill_queue(path: Path, callers: contextlib.ExitStack) -> None:
    """Callers of whom none is accepted, until the next one would have to wait."""
    while True:
        caller = callers.enter_context(socket.socket(socket.AF_UNIX))
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except BlockingIOError:
            return


async def test_an_engine_that_was_never_started_has_nothing_to_end(root: Path) -> None:
    began = time.monotonic()
    await Control(RuntimeDir(root / "none")).shutdown(30)
    assert time.monotonic() - began < 10


SUPERVISOR_WITHOUT_A_LOCK = """
import os, socket, sys, time
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    for _ in range(2):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
os.unlink(sys.argv[1])
time.sleep(0.5)
"""


@pytest.mark.slow
async def test_a_shutdown_returns_when_the_process_has_ended_not_when_its_lock_is_free(directory: RuntimeDir) -> None:
    # The kernel frees a process's files before it is gone; here for half a second.
    command = (sys.executable, "-c", SUPERVISOR_WITHOUT_A_LOCK, str(directory.control_socket))
    supervisor = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    await supervisor.stdout.readline()
    process = os.pidfd_open(supervisor.pid)
    await Control(directory).shutdown(10)
    assert can_read(process), "it has ended"
    os.close(process)
    assert await supervisor.wait() == 0
