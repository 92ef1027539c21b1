"""Hand-made HTTP to the gateway: nothing brings it down, and what it answers has a form."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared_engine.gateway import asked, connections
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import read_config
from shared_engine.gateway.listening import Listening, bound
from shared_engine.gateway.server import server_of
from tests.support.remote_server import running_server
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"


@contextmanager
def running_gateway(folder: Path, **fields: Any) -> Iterator[tuple[str, int]]:
    """One in a thread of this process, before a server that answers at once; its address."""
    listening = Listening(port=0, drain_s=1)
    (sock,) = bound(listening)
    with running_server() as far, sock:
        file = folder / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": far.url}}, **fields}))

        async def run() -> None:
            await server.serve(sockets=[sock])

        server = server_of(Catalog(read_config(file)), listening)
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            wait_until(lambda: server.started, 10, "the gateway to listen")
            yield sock.getsockname()
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with running_gateway(tmp_path_factory.mktemp("http")) as address:
        yield address


def answered(address: tuple[str, int], *pieces: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    with socket.create_connection(address, timeout=5) as connection:
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def head(method: str = "POST", path: str = CHAT, *lines: str, host: str = "Host: localhost") -> bytes:
    """Of a request after which the connection is closed."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", host, "Connection: close", *lines, "", ""]).encode("latin-1")


WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = "Content-Type: application/json"
BODY = b'{"model": "a", "messages": []}'
LENGTH = f"Content-Length: {len(BODY)}"


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (head("POST", CHAT, JSON, LENGTH) + BODY, {200}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY), {200}),
        (head("GET", "/health", "X-Long: " + "x" * 100_000), {400, 431}),
        (head("GET", "/health", *(f"X-{number}: {'y' * 100}" for number in range(1000))), {400, 431}),
        (head("GET", "/" + "x" * 100_000), {400, 431}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 403}),
        (b"GET /health\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\n\r\n", {400}),
        (head("GET", "/health", "Host: evil.com"), {400}),
        (head("GET", "/health", host="Host: evil.com"), {403}),
        (head("GET", "http://evil.com/health"), {404, 403}),
        (head("GET", "/\xff\xfe"), {400, 404}),
        (head("GET", "/health", "X-A: a\x00b"), {400}),
        (head("GET", "/health", "X A: b"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: -1"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: 1e3"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: 9" * 1, "Content-Length: 10"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: " + "9" * 50), {400, 413}),
        (head("POST", CHAT, JSON, "Content-Length: 99999999999"), {413}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: chunked") + b"zz\r\n", {400}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", {400, 501}),
        (head("POST", CHAT, "Content-Type: multipart/form-data", LENGTH) + BODY, {200, 404, 405}),
        (head("POST", CHAT, "Content-Type: \xff", LENGTH) + BODY, {400}),
        (head("TRACE", CHAT), {405}),
        (head("GET", "/v1/models/%00%0d%0aX-Evil:%201"), {404}),
        (head("GET", "/v1/models?" + "&".join("a=b" for _ in range(10_000))), {200}),
        (head("GET", "/v1/models/../../etc/passwd"), {404}),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_whatever_is_sent_is_answered_in_form(address: tuple[str, int], sent: bytes, statuses: set[int]) -> None:
    found = answered(address, sent)
    top, _, body = found.partition(b"\r\n\r\n")
    assert int(top.split(b" ")[1]) in statuses, found[:500]
    assert b"Traceback" not in found
    assert b"X-Evil: 1" not in top
    if not top.startswith(b"HTTP/1.1 200"):
        error, _ = json.JSONDecoder().raw_decode(body.decode())
        assert set(error["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health", trust_env=False).status_code == 200


def test_a_request_in_another_ones_body_is_not_a_request(address: tuple[str, int]) -> None:
    """Whatever the two lengths are said to be: what goes on to a server has a frame of its own."""
    hidden = head("GET", "/health")
    both = head("POST", CHAT, JSON, "Transfer-Encoding: chunked", f"Content-Length: {len(hidden) + 5}")
    assert b'{"status":"ok"}' not in answered(address, both + b"0\r\n\r\n" + hidden).partition(b"\r\n\r\n")[0]
    found = answered(address, head("POST", CHAT, JSON, f"Content-Length: {len(hidden)}") + hidden)
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 400" in found


def test_a_head_without_an_end_is_not_read_to_it(address: tuple[str, int]) -> None:
    with suppress(ConnectionError):  # it may be closed before the refusal is read
        assert b"HTTP/1.1 400" in answered(address, head("GET", "/health", "X-Long: " + "x" * 10_000_000))
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health", trust_env=False).status_code == 200


def test_many_idle_connections_keep_nobody_out(address: tuple[str, int]) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(address, timeout=5)).sendall(b"GET /he")
        answer = httpx.post(
            f"http://127.0.0.1:{address[1]}{CHAT}", json={"model": "a", "messages": []}, trust_env=False
        )
        assert answer.status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\n", WHOLE])
def test_who_sends_no_request_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    with running_gateway(tmp_path) as address, socket.create_connection(address, timeout=5) as connection:
        connection.sendall(sent)
        if sent == WHOLE:
            assert b"200 OK" in connection.recv(65536)
            connection.sendall(b"GET /h")
        while connection.recv(65536):
            pass


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "BODY_S", 0.1)
    with running_gateway(tmp_path) as address, socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head("POST", CHAT, JSON, LENGTH) + BODY[:5])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_an_answer_in_two_pieces_does_not_wait_for_the_first_to_be_confirmed() -> None:
    """Which costs 40 ms each: asyncio turns that off only where it knows that a socket is TCP's."""
    (sock,) = bound(Listening(port=0))
    with sock:
        assert sock.proto == socket.IPPROTO_TCP


def test_one_request_after_another_on_one_connection(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", trust_env=False) as client:
        for _ in range(20):
            assert client.post(CHAT, json={"model": "a", "messages": []}).status_code == 200
            assert client.get("/nothing").status_code == 404
