"""Hand-made HTTP to the gateway: nothing brings it down, and what it answers has a form."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from shared_engine.gateway import app, connections
from shared_engine.gateway.listening import Listening, bound
from tests.support.gateways import gateway, running_gateway
from tests.support.remote_server import running_server
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
IDLE = 10_000


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


def until(connection: socket.socket, end: bytes) -> bytes:
    """What comes until this has."""
    found = b""
    while not found.endswith(end):
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


def head(method: str = "POST", path: str = CHAT, *lines: str, host: str = "Host: localhost") -> bytes:
    """Of a request after which the connection is closed."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", host, "Connection: close", *lines, "", ""]).encode("latin-1")


WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = "Content-Type: application/json"
BODY = b'{"model": "a", "messages": []}'
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def chunked(*chunks: bytes) -> bytes:
    return head("POST", CHAT, JSON, CHUNKED) + b"".join(chunks)


def posted(path: str, body: bytes, *lines: str) -> bytes:
    return head("POST", path, JSON, f"Content-Length: {len(body)}", *lines) + body


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (head("POST", CHAT, JSON, LENGTH) + BODY, {200}),
        (chunked(CHUNKS), {200}),
        (head("GET", "/health", "X-Long: " + "x" * 100_000), {400, 431}),
        (head("GET", "/health", *(f"X-{number}: {'y' * 100}" for number in range(1000))), {400, 431}),
        (head("GET", "/" + "x" * 100_000), {400, 431}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 403}),
        (b"GET /health\r\n\r\n", {400}),
        (b"GET /health HTTP/1.1\r\n\r\n", {400}),
        (b"GET /health HTTP/1.0\r\n\r\n", {200}),  # as HAProxy's httpchk asks
        (b"GET /health HTTP/1.0\r\nHost: evil.com\r\n\r\n", {403}),
        (head("GET", "/health", "Host: evil.com"), {400}),
        (head("GET", "/health", host="Host: evil.com"), {403}),
        (head("GET", "http://evil.com/health"), {400}),
        (head("GET", "/\xff\xfe"), {400, 404}),
        (head("GET", "/health", "X-A: a\x00b"), {400}),
        (head("GET", "/health", "X A: b"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: -1"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: 1e3"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: 9" * 1, "Content-Length: 10"), {400}),
        (head("POST", CHAT, JSON, "Content-Length: " + "9" * 50), {400, 413}),
        (head("POST", CHAT, JSON, "Content-Length: 99999999999"), {413}),
        (chunked(b"zz\r\n"), {400}),
        (chunked(b"-1\r\n"), {400}),
        (chunked(b"+5\r\nabcde\r\n"), {400}),
        (chunked(b"0x5\r\nabcde\r\n"), {400}),
        (chunked(b"1_0\r\n"), {400}),
        (chunked(b"f" * 40 + b"\r\n"), {400}),
        (chunked(b"5\r\nabcdefgh\r\n0\r\n\r\n"), {400}),
        (chunked(CHUNKS[:-2], b"X-Api-Key: a\r\nHost: evil.com\r\n\r\n"), {200}),
        (head("POST", CHAT, JSON, "Transfer-Encoding : chunked") + CHUNKS, {400}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: xchunked") + CHUNKS, {400, 501}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: \x0bchunked") + CHUNKS, {400, 501}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: chunked, chunked") + CHUNKS, {400, 501}),
        (head("POST", CHAT, JSON, CHUNKED, CHUNKED) + CHUNKS, {400, 501}),
        (head("POST", CHAT, JSON, CHUNKED, "Transfer-Encoding: identity") + CHUNKS, {400, 501}),
        (head("POST", CHAT, JSON, CHUNKED, "Content-Length: 3") + CHUNKS, {400}),
        (head("POST", CHAT, JSON, CHUNKED, LENGTH) + CHUNKS, {400}),
        (head("POST", CHAT, JSON, "Content-Length: +5") + BODY, {400}),
        (head("POST", CHAT, JSON, "Content-Length: 0x5") + BODY, {400}),
        (head("POST", CHAT, JSON, "Content-Length: 3 0") + BODY, {400}),
        (head("POST", CHAT, JSON, f"Content-Length: {len(BODY)}, 3") + BODY, {400}),
        (head("POST", CHAT, JSON, LENGTH, "Expect: 100-continue") + BODY, {100}),
        (head("POST", CHAT, JSON, LENGTH, "Content-Encoding: gzip") + BODY, {415}),
        (head("GET", "/health", "X: a\rY: b"), {400}),
        (head("GET", "/health", ": b"), {400}),
        (head("GET", "/health", "no colon"), {400}),
        (head("GE T", "/health"), {400}),
        (head("GET", "/health").replace(b"Host", b" Host"), {400}),
        (b"\r\n" * 20_000, {400}),
        (head("A" * 60_000, "/health"), {400}),
        (head("CONNECT", "evil.com:443"), {400}),
        (head("OPTIONS", "*"), {400}),
        (head("GET", "https://evil.com/health"), {400}),
        (head("GET", "/health", host="Host: localhost@evil.com"), {403}),
        (head("GET", "/health", host="Host: localhost, evil.com"), {403}),
        (head("GET", "/health", host="Host: loc\xe4lhost"), {400, 403}),
        (head("GET", "/health", host="Host: "), {403}),
        (head("GET", "/health", "Upgrade: h2c", "HTTP2-Settings: AAA", "Connection: Upgrade"), {200}),
        (head("GET", "/v1/models", "Upgrade: websocket", "Connection: Upgrade"), {200}),
        (head("GET", "/health/../metrics"), {404}),
        (head("GET", "/v1/models/%c0%af"), {404}),
        (head("POST", CHAT, JSON, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", {400, 501}),
        (head("POST", CHAT, "Content-Type: multipart/form-data", LENGTH) + BODY, {400}),
        (head("POST", CHAT, "Content-Type: \xff", LENGTH) + BODY, {400}),
        (head("TRACE", CHAT), {405}),
        (head("GET", "/v1/models/%00%0d%0aX-Evil:%201"), {404}),
        (head("GET", "/v1/models?" + "&".join("a=b" for _ in range(10_000))), {200}),
        (head("POST", CHAT, JSON, LENGTH, "Upgrade: h2c", "Connection: Upgrade") + BODY, {400}),
        (head("POST", CHAT, JSON, CHUNKED, "Upgrade: h2c", "Connection: Upgrade") + CHUNKS, {400}),
        (head("GET", "/health").replace(b"HTTP/1.1", b"HTTP/2.0"), {400}),
        (head("GET", "/health").replace(b"HTTP/1.1", b"HTTP/0.9"), {400}),
        (head("POST", CHAT, JSON, CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKS, {400}),
        (head("POST", CHAT, CHUNKED) + CHUNKS[:-2] + f"{JSON}\r\n\r\n".encode(), {415}),
        (chunked(CHUNKS[:-2], b"X-Keep-Alive: nonsense\r\n\r\n"), {200}),
        (head("GET", "/health", "X: a\r\n b"), {400}),
        (head("GET", "/health").replace(b"\r\n", b"\n"), {400}),
        (head("POST", CHAT, JSON, LENGTH, LENGTH) + BODY, {400}),
        (chunked(CHUNKS.replace(b"\r\n", b"\n")), {400}),
        (head("GET", "/v1/models/../../etc/passwd"), {404}),
        (posted(CHAT, BODY, "X-Keep-Alive: " + "9" * 5000), {200}),
        (posted(CHAT, BODY, "X-Keep-Alive: \xb2"), {400}),
        (head("GET", "/api/v1/inference/logs?lines=" + "9" * 5000), {400}),
    ],
    ids=lambda value: repr(value)[:60],
)
@pytest.mark.slow
def test_whatever_is_sent_is_answered_in_form(address: tuple[str, int], sent: bytes, statuses: set[int]) -> None:
    found = answered(address, sent)
    top, _, body = found.partition(b"\r\n\r\n")
    assert int(top.split(b" ")[1]) in statuses, found[:500]
    assert b"Traceback" not in found
    assert b"X-Evil: 1" not in top
    if statuses <= {400}:
        assert b"connection: close" in top.lower()
    if not top.startswith((b"HTTP/1.1 200", b"HTTP/1.1 100")):
        error, _ = json.JSONDecoder().raw_decode(body.decode())
        assert set(error["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/messages", "/tokenize", "/api/chat", "/api/v1/inference/generate", "/chat"]
)
@pytest.mark.parametrize(
    "field",
    [
        b'"x": "\xff"',
        b'"\xff": 1',
        b'"keep_alive": 1e400',
        b'"keep_alive": ' + b"9" * 5000,
        b'"keep_alive": "\\ud800"',
        b'"model": "\\ud800"',
        b'"x": ' + b"[" * 100_000,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_that_can_not_be_read_is_refused_on_every_route(address: tuple[str, int], path: str, field: bytes) -> None:
    found = answered(address, posted(path, BODY[:-1] + b", %b}" % field))
    assert found.startswith(b"HTTP/1.1 400")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]


def test_a_request_in_another_ones_body_is_not_a_request(address: tuple[str, int]) -> None:
    """Whatever the two lengths are said to be: what goes on to a server has a frame of its own."""
    hidden = head("GET", "/health")
    both = head("POST", CHAT, JSON, CHUNKED, f"Content-Length: {len(hidden) + 5}").replace(
        b"Connection: close", b"A: b"
    )
    found = answered(address, both + b"0\r\n\r\n" + hidden)
    assert found.count(b"HTTP/1.1 ") == 1
    assert found.startswith(b"HTTP/1.1 400")
    found = answered(address, head("POST", CHAT, JSON, f"Content-Length: {len(hidden)}") + hidden)
    assert found.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 400" in found


def test_requests_that_are_sent_before_the_first_is_answered_are_answered_in_their_order(
    address: tuple[str, int],
) -> None:
    keeps = head("POST", CHAT, JSON, LENGTH).replace(b"Connection: close", b"A: b") + BODY
    found = answered(address, WHOLE + keeps + WHOLE + keeps + head("GET", "/nothing"))
    assert re.findall(rb"HTTP/1.1 ([0-9]+)", found) == [b"200", b"200", b"200", b"200", b"404"]
    assert found.index(b'"ok"}') < found.index(b"chatcmpl-1") < found.index(b'"error"')


def test_what_can_not_be_read_is_not_answered_before_or_in_place_of_what_was_asked_before_it(
    address: tuple[str, int],
) -> None:
    keeps = head("POST", CHAT, JSON, LENGTH).replace(b"Connection: close", b"A: b") + BODY
    for more in (b"nonsense\r\n\r\n", WHOLE * 40, head("GET", "/health", "Host: evil.com")):
        found = answered(address, keeps + more)
        assert found.startswith(b"HTTP/1.1 200")
        assert found.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in found
        assert b"chatcmpl-1" in found


@pytest.mark.slow
def test_a_client_of_http_1_0_gets_an_answer_without_chunks_that_ends_with_its_connection(tmp_path: Path) -> None:
    body = b'{"model": "a", "messages": [], "stream": true}'
    asked = head("POST", CHAT, JSON, f"Content-Length: {len(body)}").replace(b"HTTP/1.1", b"HTTP/1.0") + body
    for sent in (asked, asked.replace(b"Connection: close", b"Connection: keep-alive")):
        with running_gateway(tmp_path, streamed) as address:
            top, _, found = answered(address, sent).partition(b"\r\n\r\n")
        assert found == b"data: 1\n\ndata: 2\n\n"
        assert b"transfer-encoding" not in top
        assert b"connection: close" in top


async def streamed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in (b"data: 1\n\n", b"data: 2\n\n"):
        await response.write(piece)
    return response


BATCH = b'{"prompts": ["a", "b", "c"]}'


def asked(path: str, body: bytes) -> bytes:
    """After which the connection stays."""
    return posted(path, body).replace(b"Connection: close", b"A: b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "count"),
    [
        (asked(CHAT, BODY), 1),
        (asked(CHAT, BODY[:-1] + b', "stream": true}'), 1),
        (asked(CHAT, BODY) + WHOLE, 1),  # and has asked for more
        (asked("/generate", BATCH), 3),
        (asked("/api/chat", BODY.replace(b"[]", b'[{"role": "user", "content": "a"}]')), 1),
    ],
)
def test_a_client_that_leaves_ends_what_runs_for_it(tmp_path: Path, sent: bytes, count: int) -> None:
    begun, ended = [], []

    async def endless(request: web.Request) -> web.StreamResponse:
        begun.append(request.path)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(request.path)
        raise AssertionError

    with running_gateway(tmp_path, endless) as address:
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(sent)
            wait_until(lambda: len(begun) == count, 5, "requests to run")
            assert not ended
        wait_until(lambda: len(ended) == count, 5, "all of them to be ended")


@pytest.mark.parametrize(
    "begun",
    [head("GET", "/health")[:-2] + b"X-Long: ", chunked(b"5;"), chunked(CHUNKS[:-2], b"X-Long: "), chunked(b"000000")],
)
def test_what_is_no_body_and_has_no_end_is_not_read_to_it(address: tuple[str, int], begun: bytes) -> None:
    with suppress(ConnectionError):  # it may be closed before the refusal is read
        assert b"HTTP/1.1 400" in answered(address, begun + b"0" * 10_000_000)
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health", trust_env=False).status_code == 200


@pytest.mark.slow
def test_ten_thousand_idle_connections_keep_nobody_out(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < IDLE + 500:
        pytest.skip(f"this user may have {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + 500), hard))
    try:
        with running_server() as far, gateway({"models": {"a": {"base_url": far.url}}}, tmp_path) as gate:
            host, port = gate.url.removeprefix("http://").split(":")
            with ExitStack() as stack:
                for number in range(IDLE):
                    connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
                    connection.sendall((b"", b"GET /he", WHOLE)[number % 3])
                with gate.client() as client:
                    assert client.post(CHAT, json={"model": "a", "messages": []}).status_code == 200
                    assert client.get("/v1/models").json()["data"][0]["id"] == "a"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_no_more_connections_fit_the_one_that_was_idle_longest_leaves(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: not connections._idle, 5, "those of other tests to be gone")
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(3)]
        for each in opened:
            each.sendall(WHOLE)
            until(each, b'"ok"}')
        opened[0].sendall(WHOLE)  # so that the second is idle for longer
        until(opened[0], b'"ok"}')
        assert b'"ok"' in answered(address, head("GET", "/health"))
        assert opened[1].recv(65536) == b""
        for each in (opened[0], opened[2]):
            each.sendall(WHOLE)
            until(each, b'"ok"}')


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"zz\r\n", b"5\r\nabcdefgh", b"\x00\r\n"])
def test_what_follows_a_refusal_is_not_answered_and_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """The key is looked at before the body has come."""
    keys = [{"name": "me", "key": "12345678"}]
    with (
        running_gateway(tmp_path, api_keys=keys) as address,
        socket.create_connection(address, timeout=5) as connection,
    ):
        connection.sendall(chunked().replace(b"Connection: close", b"A: b"))
        assert until(connection, b"}}").startswith(b"HTTP/1.1 401")
        connection.sendall(sent)
        assert connection.recv(65536) == b""
    assert "Fatal error" not in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_client_that_takes_nothing_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily
) -> None:
    monkeypatch.setattr(connections, "TAKE_S", 0.5)
    left = threading.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while True:
                await response.write(b"data: %b\n\n" % (b"x" * 60_000))
        finally:
            left.set()

    body = b'{"model": "a", "messages": [], "stream": true}'
    where = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
    sock = socket.create_server(where, family=family)
    with (
        running_gateway(tmp_path, flood, listening=Listening(passed=(sock,), drain_s=1)) as address,
        socket.socket(family) as connection,
    ):
        connection.connect(address)
        connection.sendall(posted(CHAT, body))
        assert left.wait(20)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.1)
    with running_gateway(tmp_path) as address, socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head("POST", CHAT, JSON, LENGTH) + BODY[:5])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_a_look_that_hangs_does_not_keep_the_gateway_from_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hanging(_: object) -> tuple[bytes, str]:
        begun.set()
        goes_on.wait(15)
        return b"", "text/plain"

    monkeypatch.setattr(app, "metrics_page", hanging)
    with running_gateway(tmp_path) as address, socket.create_connection(address, timeout=5) as connection:
        connection.sendall(head("GET", "/metrics"))
        assert begun.wait(5)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    goes_on.set()


@pytest.mark.slow
def test_a_request_that_has_not_all_come_when_the_gateway_has_drained_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        with running_gateway(tmp_path) as address:
            connection = stack.enter_context(socket.create_connection(address, timeout=5))
            connection.sendall(WHOLE)
            until(connection, b'"ok"}')
            connection.sendall(head("POST", CHAT, JSON, LENGTH) + BODY[:5])
        found = until(connection, b"}}")
    assert found.startswith(b"HTTP/1.1 503")
    assert b'"shutting_down"' in found
    assert b"retry-after: 1" in found
    assert "Traceback" not in caplog.text


def test_an_answer_in_two_pieces_does_not_wait_for_the_first_to_be_confirmed() -> None:
    """Which costs 40 ms each: asyncio turns that off only where it knows that a socket is TCP's."""
    (sock,) = bound(Listening(port=0))
    with sock:
        assert sock.proto == socket.IPPROTO_TCP


@pytest.mark.slow
def test_one_request_after_another_on_one_connection(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", trust_env=False) as client:
        for _ in range(20):
            assert client.post(CHAT, json={"model": "a", "messages": []}).status_code == 200
            assert client.get("/nothing").status_code == 404
