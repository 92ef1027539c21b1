"""Connections: which are used again, and which are not."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from shared_engine import Engine
from shared_engine.errors import RequestError, ServerUnreachableError
from shared_engine.request.client import HttpClient, split_events, why_not
from shared_engine.request.engine_socket import EngineSocket
from shared_engine.request.loop_clients import loop_clients
from tests.support.remote_server import running_server
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def server_that_says(status: str, *, in_pieces: bool) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that keeps all connections open; it notes the connection that each request came on."""
    requests_of: list[int] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        while await reader.readuntil(b"\r\n\r\n"):
            requests_of.append(number)
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n".encode())
            if in_pieces:
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(b"{}")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}", requests_of
    finally:
        server.close()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(("status", "used"), [("200 OK", [1, 1]), ("400 Bad Request", [1, 1]), ("500 Oh", [1, 2])])
async def test_a_connection_is_used_again_but_not_after_a_servers_failure(
    status: str, used: list[int], in_pieces: bool
) -> None:
    async with server_that_says(status, in_pieces=in_pieces) as (url, requests_of):
        client = HttpClient(url)
        for _ in range(2):
            try:
                await client.request("GET", "/")
            except RequestError:
                assert not status.startswith("200")
        assert requests_of == used
        await client.close()


@pytest.mark.slow
def test_a_loop_that_was_closed_with_its_connections_leaves_none_open() -> None:
    """As LlamaIndex's asyncio_run does in a notebook: it closes the loop, but not the generators that run on it."""

    async def ask(url: str, times: int) -> None:
        client = await loop_clients(url).get()
        await asyncio.gather(*(client.request("GET", "/") for _ in range(times)))

    def ask_on_a_loop_of_its_own(url: str) -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask(url, 5))
        loop.close()

    async def ask_twice() -> None:
        async with server_that_says("200 OK", in_pieces=True) as (url, requests_of):
            before = open_sockets()
            await asyncio.to_thread(ask_on_a_loop_of_its_own, url)
            assert open_sockets() - before == 2 * 5  # both ends
            await ask(url, 1)
            await asyncio.sleep(0.1)
            assert open_sockets() - before == 2
            assert len(requests_of) == 6

    asyncio.run(ask_twice())
    gc.collect()  # says what was dropped while it was open


@pytest.mark.slow
async def test_closing_keeps_no_connection_and_ends_no_request() -> None:
    async with server_that_says("200 OK", in_pieces=True) as (url, requests_of):
        before = open_sockets()
        clients = loop_clients(url)
        client = await clients.get()
        await asyncio.gather(*(client.request("GET", "/") for _ in range(2)))
        asking = asyncio.create_task(client.request("GET", "/"))
        await asyncio.sleep(0.02)
        await clients.close()
        await asyncio.sleep(0.01)
        assert open_sockets() - before == 2  # both ends of the one that carries a request
        assert await asking == b"{}"
        assert await client.request("GET", "/") == b"{}", "who got it before"
        assert await (await clients.get()).request("GET", "/") == b"{}"
        await clients.close()
        await asyncio.sleep(0.05)
        assert open_sockets() == before
        assert len(requests_of) == 5


@pytest.mark.parametrize("is_fleet", [False, True])
def test_closing_one_object_ends_no_request_of_another(is_fleet: bool) -> None:
    with running_server() as server:
        may_end = threading.Event()
        server.streams("Hel", "lo")
        stream_all = server.handler

        async def held(request: web.Request) -> web.StreamResponse:
            if not (await request.json()).get("stream"):
                await asyncio.to_thread(may_end.wait, 10)
                return await server.answer(request)
            return await stream_all(request)

        server.handler = held
        url = [server.url, f"{server.url}/other"] if is_fleet else server.url
        engine = Engine(base_url=url, model="served", max_retries=0)
        if is_fleet:
            engine.fleet.remove(f"{server.url}/other")
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(engine.chat, HELLO)
            pieces = engine.stream_chat(HELLO)
            assert next(pieces).text == "Hel"
            wait_until(lambda: len(server.requests) == 2, 10, "both requests")
            with Engine(engine.settings) as other:
                assert list(other.stream_chat(HELLO))
            may_end.set()
            assert [piece.text for piece in pieces][-1] == "lo"
            assert whole.result(10).text == "Hi"
        assert len(server.requests) == 3


def open_sockets() -> int:
    return sum("socket:" in os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))


def test_events_are_taken_whole_from_any_cut_of_the_bytes() -> None:
    stream = b': ping\n\ndata: {"a": 1}\r\n\r\ndata:{"b": "\xc3\xa9"}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 7, 1000):
        buffer, events = bytearray(), []
        for start in range(0, len(stream), size):
            buffer += stream[start : start + size]
            events += list(split_events(buffer))
        assert events == [b'{"a": 1}', b'{"b": "\xc3\xa9"}', b"[DONE]"]
        assert not buffer


async def test_a_server_that_goes_with_its_connections_is_told_of_once_asked_again(tmp_path: Path) -> None:
    path, gone = str(tmp_path / "socket"), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await reader.readuntil(b"\r\n\r\n")  # the second request: its answer is the end
        server.close()
        writer.close()
        gone.set()

    server = await asyncio.start_unix_server(handle, path)
    client = EngineSocket(path)
    assert await client.request("GET", "/") == b"{}"
    with pytest.raises(ServerUnreachableError):
        await client.request("GET", "/")
    assert gone.is_set()
    await client.close()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://localhost:9"])  # which may have two addresses
async def test_why_a_server_cannot_be_reached_is_told_in_words(address: str) -> None:
    client = HttpClient(address)
    with pytest.raises(ServerUnreachableError) as caught:
        await client.request("GET", "/")
    assert str(caught.value) == f"{address} can't be reached: Connection refused: no server listens there"
    await client.close()


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(113, "Connect call failed ('192.0.2.1', 80)"), "No route to host"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect ..., [Errno 101] ..."),
            "Connection refused, Network is unreachable",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("something else"), "something else"),
    ],
)
def test_the_systems_words_stand_for_asyncios(error: OSError, why: str) -> None:
    assert why_not(error) == why


@pytest.mark.slow
async def test_a_connection_takes_no_longer_than_a_silence_may() -> None:
    """A listening socket whose queue is full lets nobody know: as a host whose cable is pulled."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        host, port = listening.getsockname()
        first.connect((host, port))
        client = HttpClient(f"http://{host}:{port}")
        with pytest.raises(ServerUnreachableError, match=r"did not accept a connection in 0\.2 s"):
            await client.request("GET", "/", timeout=0.2)
        await client.close()
