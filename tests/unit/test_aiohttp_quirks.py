"""What we reach for inside aiohttp is there, and does what we need. The reuse after a 5xx is in test_client.py."""

from __future__ import annotations

import asyncio
import gc
import os
import warnings
from collections.abc import Iterator

import aiohttp
import pytest

from shared_engine.request import open_connections
from shared_engine.request.aiohttp_quirks import connector_class, response_class, session_class
from shared_engine.request.open_connections import hang_up, let_go_in_child
from tests.support.remote_server import RemoteServer, running_server


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


async def open_session(url: str) -> aiohttp.ClientSession:
    """A session with one idle connection."""
    session = session_class()(connector=connector_class()(), response_class=response_class())
    async with session.get(url + "/health") as response:
        assert response.status == 200
    return session


def socket_of(session: aiohttp.ClientSession) -> int:
    (transport,) = session.connector.noted  # type: ignore[union-attr]
    number: int = transport.get_extra_info("socket").fileno()
    return number


async def test_a_connection_is_noted_as_long_as_it_is_open(server: RemoteServer) -> None:
    session = await open_session(server.url)
    (transport,) = session.connector.noted  # type: ignore[union-attr]
    assert transport in open_connections._connections
    assert os.readlink(f"/proc/self/fd/{socket_of(session)}").startswith("socket:")
    await session.close()
    assert transport.is_closing()


def test_what_a_closed_loop_left_open_is_closed_without_it(server: RemoteServer) -> None:
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(open_session(server.url))
    loop.close()
    number = socket_of(session)
    hang_up(session.connector.noted)  # type: ignore[union-attr]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("is_in_a_cycle", [False, True])
def test_a_dropped_session_is_collected_without_a_word(
    is_in_a_cycle: bool, server: RemoteServer, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(open_session(server.url))
    loop.close()
    hang_up(session.connector.noted)  # type: ignore[union-attr]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if is_in_a_cycle:  # as by an error's traceback
            holder: list[object] = [session]
            holder.append(holder)
            del holder
        del session
        gc.collect()
    assert [str(each.message) for each in said] == []
    assert caplog.records == []


async def test_a_forked_child_holds_no_connection_and_the_parents_goes_on(server: RemoteServer) -> None:
    session = await open_session(server.url)
    number = socket_of(session)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which is what is tried here
        pid = os.fork()
    if pid == 0:
        try:
            let_go_in_child()
            os.write(write, os.readlink(f"/proc/self/fd/{number}").encode())
        finally:
            os._exit(0)
    os.close(write)
    assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
    assert os.read(read, 100) == b"/dev/null"
    os.close(read)
    assert socket_of(session) == number
    async with session.get(server.url + "/health") as response:
        assert response.status == 200
    assert socket_of(session) == number, "the same connection"
    await session.close()
