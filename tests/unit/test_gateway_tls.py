"""The gateway by TLS: who does not begin it is not kept, and keeps nobody out."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from shared_engine.gateway import connections
from shared_engine.gateway.listening import Listening
from tests.support.gateways import gateway, running_gateway
from tests.support.remote_server import running_server

CHAT = "/v1/chat/completions"
BODY = {"model": "a", "messages": []}
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")


@pytest.fixture(scope="module")
def by_tls(tmp_path_factory: pytest.TempPathFactory) -> Listening:
    """With a certificate of this machine."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", *kind, *names, "-keyout", key, "-out", cert]
    subprocess.run(made, check=True, capture_output=True)
    return Listening(port=0, drain_s=1, tls_cert=cert, tls_key=key)


def client_of(url: str, listening: Listening) -> httpx.Client:
    trusted = ssl.create_default_context(cafile=listening.tls_cert)
    return httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=10)


@pytest.mark.slow
def test_tls(tmp_path: Path, by_tls: Listening) -> None:
    with (
        running_server() as far,
        gateway(
            {"models": {"a": {"base_url": far.url}}},
            tmp_path,
            "--tls-cert",
            str(by_tls.tls_cert),
            "--tls-key",
            str(by_tls.tls_key),
        ) as gate,
        ExitStack() as stack,
    ):
        assert gate.url.startswith("https://127.0.0.1:")
        with client_of(gate.url, by_tls) as client:
            assert client.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == "Hi"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{gate.url.replace('https', 'http')}/health", trust_env=False)
        address = ("127.0.0.1", int(gate.url.rpartition(":")[2]))
        stack.enter_context(socket.create_connection(address))
        began = time.monotonic()
        assert gate.end() == 0
        assert time.monotonic() - began < 8  # who has begun nothing is not waited for
    assert "Traceback" not in gate.told()


@pytest.mark.slow
def test_connections_that_never_begin_tls_keep_nobody_out(
    tmp_path: Path, by_tls: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    with running_gateway(tmp_path, listening=by_tls) as address, ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(6)]
        for each in idle[::2]:
            each.sendall(b"\x16\x03\x01")
        with client_of(f"https://127.0.0.1:{address[1]}", by_tls) as client:
            assert client.post(CHAT, json=BODY).status_code == 200
        for each in idle[:3]:
            assert is_ended(each)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_does_not_begin_tls_is_not_kept(
    tmp_path: Path, by_tls: Listening, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    with (
        running_gateway(tmp_path, listening=by_tls) as address,
        socket.create_connection(address, timeout=5) as connection,
    ):
        connection.sendall(sent)
        assert is_ended(connection)


def is_ended(connection: socket.socket) -> bool:
    """It ends, before the socket's own timeout."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True
