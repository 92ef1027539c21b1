"""How an engine is asked by its socket: connections used again, answers in any pieces, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from shared_engine.errors import RequestError, RequestTimeoutError, ServerConnectionError, ServerUnreachableError
from shared_engine.request import connection_budget, engine_socket
from shared_engine.request.engine_socket import EngineSocket

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
Script = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """What has been asked, as the numbers of the connections, and whose clients have hung up."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.heads: list[str] = []
        self.left = asyncio.Event()


@asynccontextmanager
async def engine(path: Path, script: Script) -> AsyncIterator[tuple[EngineSocket, Engine]]:
    """One that answers each request with ``script``, and the client of it."""
    told, connections = Engine(), 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                told.asked.append(number)
                told.heads.append(head.decode())
                await script(number, reader, writer)
        told.left.set()
        writer.close()

    server = await asyncio.start_unix_server(handle, path / "socket")
    client = EngineSocket(str(path / "socket"))
    try:
        yield client, told
    finally:
        await client.close()
        server.close()
        await asyncio.sleep(0.01)  # its connections see that


def sends(*pieces: bytes, then_close: bool = False) -> Script:
    async def script(_: int, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then_close:
            writer.close()

    return script


async def pieces_of(client: EngineSocket, timeout: float | None = None) -> bytes:
    answer = await client.send("POST", "/", b"{}", timeout)
    try:
        found = b""
        while piece := await answer.readany():
            found += piece
        return found
    finally:
        answer.close()


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        ("200 OK", [1, 1]), ("404 No", [1, 1]), ("500 Oh", [1, 2]), ("200 OK\r\nConnection: close", [1, 2]),
        ("100 Continue\r\n\r\nHTTP/1.1 200 OK", [1, 1]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_a_connection_is_used_again_unless_its_engine_closes_it(
    tmp_path: Path, head: str, asked: list[int], cut: int
) -> None:
    whole = f"HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    script = sends(*(whole[at : at + cut] for at in range(0, len(whole), cut)))
    async with engine(tmp_path, script) as (client, told):
        for _ in range(2):
            with suppress(RequestError):
                assert await client.request("POST", "/v1/x?a=b", b"{}") == b"{}"
        assert told.asked == asked
        assert told.heads[0].startswith("POST /v1/x?a=b HTTP/1.1\r\n")
        assert "content-length: 2\r\n" in told.heads[0]


@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_the_answer_to_head_has_no_body_whatever_its_headers_say(tmp_path: Path, cut: int) -> None:
    head = b"HTTP/1.1 405 No\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n"
    async with engine(tmp_path, sends(*(head[at : at + cut] for at in range(0, len(head), cut)))) as (client, told):
        for _ in range(2):
            answer = await client.send("HEAD", "/v1/x", None, 5)
            assert answer.status == 405
            assert await asyncio.wait_for(answer.read(), 1) == b""
        assert told.asked == [1, 2]  # a parser that waits for a body is not used again


@pytest.mark.parametrize("cut", [1, 2, 5, 1000])
async def test_a_stream_comes_as_it_was_sent_however_it_is_cut(tmp_path: Path, cut: int) -> None:
    sent = CHUNKED + b"3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nA: trailer\r\n\r\n"
    async with engine(tmp_path, sends(*(sent[at : at + cut] for at in range(0, len(sent), cut)))) as (client, told):
        for _ in range(2):
            assert await pieces_of(client) == b"abc0123456789abcdef"
        assert told.asked == [1, 1]
        answer = await client.send("POST", "/", b"{}", None)
        assert (answer.status, answer.content_type, "a" in answer.headers) == (200, "text/event-stream", False)
        answer.close()


async def test_a_connection_that_was_closed_meanwhile_costs_no_request(tmp_path: Path) -> None:
    async def second_is_the_end(number: int, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if told.asked.count(number) > 1:
            writer.close()
        else:
            writer.write(OK)

    async with engine(tmp_path, second_is_the_end) as (client, told):
        for _ in range(2):
            assert await client.request("POST", "/", b"{}") == b"{}"
        assert told.asked == [1, 1, 2]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ((b"",), "closed the connection before it had answered, 0.0 s after the request"),
        ((OK[:-1],), "closed the connection before the answer was whole, 0.0 s after the request"),
        ((CHUNKED, b"3\r\nabc\r\n"), "closed the connection before the answer was whole"),
        ((b"SSH-2.0\r\n",), "did not send valid HTTP"),
        ((CHUNKED, b"zz\r\n"), "did not send valid HTTP"),
        ((CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n", b"3\r\nabc\r\n"), "did not send valid HTTP"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(tmp_path: Path, sent: tuple[bytes, ...], message: str) -> None:
    async with engine(tmp_path, sends(*sent, then_close=True)) as (client, told):
        with pytest.raises(ServerConnectionError, match=message):
            await pieces_of(client)
        assert told.asked == [1]


async def test_what_comes_without_a_request_is_never_the_answer_to_the_next_one(tmp_path: Path) -> None:
    async with engine(tmp_path, sends(OK + OK)) as (client, _):
        with pytest.raises(ServerConnectionError, match="more than one answer"):
            await client.request("POST", "/", b"{}")
    async with engine(tmp_path, sends(OK, b"", OK.replace(b"{}", b"no"))) as (client, told):
        assert await client.request("POST", "/", b"{}") == b"{}"
        await asyncio.wait_for(told.left.wait(), 5)
        assert await client.request("POST", "/", b"{}") == b"{}"
        assert told.asked == [1, 2]


async def test_no_engine_is_there(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachableError, match=r"can't be reached: No such file"):
        await EngineSocket(str(tmp_path / "nothing")).request("GET", "/health")


async def test_a_connection_that_is_not_made_takes_no_place(tmp_path: Path) -> None:
    taken = connection_budget._budget._taken
    with pytest.raises(ServerUnreachableError) as kept:  # and all that its frames hold
        await EngineSocket(str(tmp_path / "nothing")).request("POST", "/", b"{}")
    assert connection_budget._budget._taken == taken, kept.value


async def test_an_engine_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    async with engine(tmp_path, sends(CHUNKED, b"3\r\nabc\r\n")) as (client, told):
        with pytest.raises(RequestTimeoutError, match=r"sent nothing for timeout = 0\.05 s"):
            await pieces_of(client, timeout=0.05)
        await asyncio.wait_for(told.left.wait(), 5)


async def test_who_leaves_ends_the_request(tmp_path: Path) -> None:
    taken = connection_budget._budget._taken
    async with engine(tmp_path, sends(CHUNKED)) as (client, told):
        answer = await client.send("POST", "/", b"{}", None)
        answer.close()
        await asyncio.wait_for(told.left.wait(), 5)
    async with engine(tmp_path, sends()) as (client, told):
        sending = asyncio.create_task(client.send("POST", "/", b"{}", None))
        while not told.asked:
            await asyncio.sleep(0.001)
        sending.cancel()
        await asyncio.wait_for(told.left.wait(), 5)
    assert connection_budget._budget._taken == taken


@pytest.mark.slow
async def test_an_engine_waits_for_who_does_not_read_and_is_not_called_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_socket, "MOST_UNREAD", 10_000)
    sent, much = asyncio.Event(), b"x" * 4_000_000

    async def flood(_: int, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(much), much))
        await writer.drain()
        sent.set()

    async with engine(tmp_path, flood) as (client, told):
        answer = await client.send("POST", "/", b"{}", 0.05)
        await asyncio.sleep(0.2)
        assert not sent.is_set()
        assert await answer.read() == much
        assert await asyncio.wait_for(pieces_of(client), 5) == much  # on the same connection
        assert told.asked == [1, 1]


async def test_nothing_that_is_sent_makes_another_header(tmp_path: Path) -> None:
    async with engine(tmp_path, sends(OK)) as (client, told):
        for path, value in (("/\r\nA: b", "c"), ("/", "c\r\nA: b"), ("/", "c\nA: b"), ("/", "c\0")):
            with pytest.raises(ValueError, match="line break"):
                await client.send("POST", path, b"{}", None, (("x-request-id", value),))
        assert told.asked == []


async def test_who_still_reads_an_answer_that_somebody_leaves_is_told(tmp_path: Path) -> None:
    async with engine(tmp_path, sends(CHUNKED)) as (client, _):
        answer = await client.send("POST", "/", b"{}", None)
        reading = asyncio.ensure_future(answer.readany())
        await asyncio.sleep(0)
        answer.close()
        with pytest.raises(ServerConnectionError, match="left before it was whole"):
            await reading
