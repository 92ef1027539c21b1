"""HTTP/1.1 under load: connections that the server closes early, silence, proxies that buffer, TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, RequestError, ServerConnectionError, ServerUnreachableError, SettingsError
from shared_engine.request.http_options import HttpOptions
from shared_engine.request.loop_clients import loop_clients
from tests.support.raw_server import (
    CHUNKED,
    DONE,
    LAST_CHUNK,
    Conversation,
    chunked,
    event,
    piece,
    raw_server,
    whole,
)
from tests.support.remote_server import chat_answer

HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = whole(json.dumps(chat_answer()).encode())
STREAMED = CHUNKED + chunked(event(piece("Hi", "stop")), DONE) + LAST_CHUNK


def ask(engine: Engine, stream: bool) -> str:
    return "".join(chunk.text for chunk in engine.stream_chat(HELLO)) if stream else engine.chat(HELLO).text


# ---- connections that are used again


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_that_the_server_has_closed_is_not_the_requests_fault(stream: bool, how: str) -> None:
    """The server answers once on each connection, and resets it when the next request comes. No retry is allowed."""

    async def script(conversation: Conversation) -> None:
        _, body = await conversation.request()
        await conversation.send(STREAMED if body.get("stream") else ANSWER)
        await conversation.request()
        if how == "reset":
            conversation.reset()

    with raw_server(script) as server:
        engine = Engine(base_url=server.url, model="served", max_retries=0)
        for _ in range(5):
            assert ask(engine, stream) == "Hi"
        assert server.connections == 5


@pytest.mark.slow
def test_many_connections_that_were_all_closed_meanwhile() -> None:
    """Each request may meet one closed connection after the other."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await asyncio.sleep(0.05)
        await conversation.send(ANSWER)
        await conversation.request()
        conversation.reset()

    async def rounds(url: str) -> None:
        engine = Engine(base_url=url, model="served", max_retries=0)
        for _ in range(3):
            answers = await asyncio.gather(*(engine.achat(HELLO) for _ in range(50)))
            assert [answer.text for answer in answers] == ["Hi"] * 50

    with raw_server(script) as server:
        asyncio.run(rounds(server.url))


@pytest.mark.parametrize("stream", [False, True])
def test_a_new_connection_that_is_cut_counts(stream: bool) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        conversation.reset()

    with raw_server(script) as server:
        with pytest.raises(ServerConnectionError):
            ask(Engine(base_url=server.url, model="served", max_retries=1), stream)
        assert server.connections == 2


@pytest.mark.slow
def test_a_request_that_ends_its_server_is_not_repeated_for_ever() -> None:
    """Cut after a while on a connection that was used before: that is the request's failure."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        if conversation.number == 1:
            await conversation.send(ANSWER)
            await conversation.request()
            await asyncio.sleep(1.2)
        conversation.reset()

    with raw_server(script) as server:
        engine = Engine(base_url=server.url, model="served", max_retries=0)
        assert ask(engine, stream=False) == "Hi"
        with pytest.raises(ServerConnectionError):
            ask(engine, stream=False)
        assert server.connections == 1


def test_a_request_whose_answer_has_begun_is_not_sent_again() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(ANSWER)
        await conversation.request()
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
        conversation.reset()

    with raw_server(script) as server:
        engine = Engine(base_url=server.url, model="served", max_retries=0)
        assert ask(engine, stream=False) == "Hi"
        with pytest.raises(ServerConnectionError):
            ask(engine, stream=False)
        assert server.connections == 1


# ---- silence, and what comes all at once


@pytest.mark.slow
def test_silence_between_two_pieces_is_no_error_below_the_limit() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(CHUNKED + chunked(event(piece("H"))))
        await asyncio.sleep(0.7)
        await conversation.send(chunked(event(piece("i", "stop")), DONE) + LAST_CHUNK)

    with raw_server(script) as server:
        for limit in (3, None):
            assert ask(Engine(base_url=server.url, model="served", timeout=limit), stream=True) == "Hi"


@pytest.mark.slow
def test_a_comment_is_a_sign_of_life() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(CHUNKED)
        for _ in range(10):
            await conversation.send(chunked(b": keep-alive\n\n"))
            await asyncio.sleep(0.1)
        await conversation.send(chunked(event(piece("Hi", "stop")), DONE) + LAST_CHUNK)

    with raw_server(script) as server:
        assert ask(Engine(base_url=server.url, model="served", timeout=0.5, max_retries=0), stream=True) == "Hi"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_proxy_may_cut_and_join_as_it_likes(size: int, end: bytes) -> None:
    """What was sent as events comes all at once, or byte by byte; its lines may end in each of three ways."""
    events = (event(piece("H")) + event(piece("é")) + event(piece("i", "stop")) + DONE).replace(b"\n", end)
    pieces = [events[start : start + size] for start in range(0, len(events), size)]

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(CHUNKED)
        for each in pieces:
            await conversation.send(chunked(each))
        await conversation.send(LAST_CHUNK)

    with raw_server(script) as server:
        assert ask(Engine(base_url=server.url, model="served"), stream=True) == "Héi"


async def test_keep_alive_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(ANSWER)
        await conversation.request()

    with raw_server(script) as server:
        client = await loop_clients(server.url).get()
        await client.request("POST", "/", b"{}")
        (transport,) = client._connector.noted
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        await client.close()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named_and_not_followed(status: int) -> None:
    """A request with a key or a header of its own must not go where a server likes it to."""
    head = f"HTTP/1.1 {status} Moved\r\nLocation: https://elsewhere.example/v1/chat/completions\r\n".encode()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(whole(b"", head))

    with raw_server(script) as server:
        with pytest.raises(RequestError, match=r"redirects to https://elsewhere\.example/.*base_url") as caught:
            Engine(base_url=server.url, model="served").chat(HELLO)
        assert caught.value.status == status
        assert server.connections == 1


# ---- TLS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``server.pem`` and ``client.pem`` sign for themselves, ``.key`` is the key, ``locked.key`` has a password."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        where = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        kind = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext"]
        openssl("req", "-x509", *kind, "subjectAltName=IP:127.0.0.1", *where)
    both = (folder / "client.pem").read_text() + (folder / "client.key").read_text()
    (folder / "both.pem").write_text(both)
    openssl(
        "rsa", "-aes256", "-passout", "pass:word", "-in", str(folder / "client.key"), "-out", str(folder / "locked.key")
    )
    return folder


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(ANSWER)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def tls_of(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return context


@contextmanager
def tls_server(certificates: Path, *, wants_a_certificate: bool = False) -> Iterator[str]:
    context = tls_of(certificates)
    if wants_a_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "client.pem")
    server = HTTPServer(("127.0.0.1", 0), Answering)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def asked(url: str, **settings: Any) -> str:
    return Engine(base_url=url, model="served", **{"max_retries": 0, **settings}).chat(HELLO).text


@needs_openssl
@pytest.mark.slow
def test_a_certificate_of_ones_own_authority(certificates: Path) -> None:
    with tls_server(certificates) as url:
        assert asked(url, ssl_ca_certs=str(certificates / "server.pem")) == "Hi"
        with pytest.raises(ServerUnreachableError, match=r"by TLS: .*ssl_ca_certs"):
            asked(url)
        with pytest.raises(ServerUnreachableError, match="by TLS"):
            asked(url, ssl_ca_certs=str(certificates / "client.pem"), max_retries=5)


@needs_openssl
@pytest.mark.slow
def test_a_certificate_that_is_not_checked_is_warned_of_once(
    certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tls_server(certificates) as url, caplog.at_level(logging.WARNING):
        for model in ("served", "other"):
            Engine(base_url=url, model=model, ssl_verify=False, default_headers={"X": model}).chat(HELLO)
        assert [record.message for record in caplog.records] == [
            f"{url}: its certificate is not checked (ssl_verify=False): anybody may answer for it"
        ]


@pytest.mark.slow
@needs_openssl
def test_a_clients_certificate(certificates: Path) -> None:
    ours = {"ssl_ca_certs": str(certificates / "server.pem")}
    with tls_server(certificates, wants_a_certificate=True) as url:
        pair = {"ssl_certfile": str(certificates / "client.pem"), "ssl_keyfile": str(certificates / "client.key")}
        assert asked(url, **ours, **pair) == "Hi"
        assert asked(url, **ours, ssl_certfile=str(certificates / "both.pem")) == "Hi"
        with pytest.raises(RequestError):
            asked(url, **ours)


@needs_openssl
@pytest.mark.parametrize("is_busy", [False, True])
async def test_closing_leaves_no_tls_connection_behind(certificates: Path, is_busy: bool) -> None:
    """Idle ones are closed when that returns, others soon after their request, whatever the server does."""
    may_answer, may_go_on = threading.Event(), threading.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await asyncio.to_thread(may_answer.wait, 10)
        await conversation.send(ANSWER)
        may_go_on.wait(10)  # the whole server: it does not answer TLS's shutdown

    with raw_server(script, tls_of(certificates)) as server:
        options = HttpOptions(ssl_ca_certs=str(certificates / "server.pem"))
        client = await loop_clients(server.url, options).get()
        asking = asyncio.create_task(client.request("POST", "/", b"{}"))
        try:
            if is_busy:
                while not client._connector.noted:
                    await asyncio.sleep(0.01)
            else:
                may_answer.set()
                await asking
            sockets = [each.get_extra_info("socket") for each in client._connector.noted]
            await asyncio.wait_for(client.close(), 5)
            may_answer.set()
            assert await asking
            for _ in range(3 * is_busy):  # rounds of the loop, as asyncio.run has at its end
                await asyncio.sleep(0)
            assert [each.fileno() for each in sockets] == [-1]
        finally:
            may_answer.set()
            may_go_on.set()


@needs_openssl
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ssl_ca_certs": "client.key"}, "ssl_ca_certs"),
        ({"ssl_certfile": "client.pem"}, "ssl_certfile"),
        ({"ssl_certfile": "client.pem", "ssl_keyfile": "server.key"}, "ssl_keyfile"),
        ({"ssl_certfile": "client.pem", "ssl_keyfile": "locked.key"}, "ssl_keyfile.*unencrypted"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    certificates: Path, settings: dict[str, str], message: str
) -> None:
    files = {name: str(certificates / file) for name, file in settings.items()}
    with pytest.raises(SettingsError, match=message):
        asked("https://127.0.0.1:1", **files)


def test_a_server_that_speaks_no_tls_is_named_so() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(ANSWER)

    with raw_server(script) as server:
        with pytest.raises(ServerUnreachableError, match="by TLS"):
            asked(server.url.replace("http:", "https:"))
        assert server.connections == 1


def test_options_show_nothing_secret() -> None:
    word = "hunter2"
    options = HttpOptions(headers=(("X", word),), proxy="http://proxy", proxy_auth=f"user:{word}")
    assert word not in repr(options)
    assert word not in "".join(traceback.format_exception(ValueError(options)))
