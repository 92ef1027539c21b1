"""The gateway as a service: sockets that it is started with, what its manager hears, and another one in its place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared_engine.gateway import server as server_module
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig, read_config
from shared_engine.gateway.listening import bound
from shared_engine.gateway.server import serve, server_of
from shared_engine.gateway.watched_file import WatchedFile
from tests.support.gateways import LEAVE_S, ON_A_FREE_PORT, Gateway, gateway
from tests.support.processes import any_exists
from tests.support.remote_server import RemoteServer, running_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "a", "messages": []}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


class Manager:
    """A service manager: what it has heard, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        try:
            while True:
                self.lines += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.lines

    def wait_for(self, beginning: str) -> str:
        wait_until(lambda: any(line.startswith(beginning) for line in self.heard()), LEAVE_S, beginning)
        return next(line for line in self.lines if line.startswith(beginning))

    def close(self) -> None:
        """End who has taken over."""
        pids = {int(line.partition("=")[2]) for line in self.heard() if line.startswith("MAINPID=")}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not any_exists(pids), LEAVE_S, "the others to leave")
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@contextmanager
def listening(address: str | tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[socket.socket]:
    """A socket as a service manager keeps one, while the service comes and goes."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.bind(address)
        sock.listen()
        yield sock


def test_it_answers_on_the_sockets_that_it_is_started_with(tmp_path: Path, server: RemoteServer) -> None:
    path = str(tmp_path / "gateway.sock")
    content = {"models": {"a": {"base_url": server.url}}}
    with listening() as tcp, listening(path) as unix:
        with waiting_client(tcp) as early, gateway(content, tmp_path, passed=(tcp, unix)) as gate:
            assert early.recv(4096).startswith(b"HTTP/1.1 200 OK")
            assert gate.url == f"http://127.0.0.1:{tcp.getsockname()[1]}/v1, unix:{path}"
            with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost") as client:
                assert client.post(CHAT, json=ASKED).status_code == 200
                assert client.get("/health", headers={"Host": "page.example"}).status_code == 403
            assert gate.end() == 0
        waiting_client(tcp).close()  # it is not refused: the next one will answer


def waiting_client(sock: socket.socket) -> socket.socket:
    """One that has asked."""
    client = socket.create_connection(sock.getsockname())
    client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def test_what_the_service_manager_hears(tmp_path: Path, server: RemoteServer, manager: Manager) -> None:
    server.streams("a", "b", then="hang")
    content = {"models": {"a": {"base_url": server.url}}}
    with (
        gateway(content, tmp_path, "--drain", "2", NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="100000") as gate,
        gate.client() as client,
    ):
        manager.wait_for("READY=1")
        assert client.get("/health").status_code == 200
        manager.wait_for("WATCHDOG=1")
        for new, told in (({"models": {}}, "the configuration stays as it was"), (content, "was read again: 1 models")):
            manager.lines.clear()
            gate.write(new)
            gate.reload()
            assert told in manager.wait_for("STATUS=")
            lines = [line.partition("=")[0] for line in manager.heard() if line != "WATCHDOG=1"]
            assert lines == ["RELOADING", "MONOTONIC_USEC", "READY", "STATUS"]
        manager.lines.clear()
        gate.file.write_text("models: {a: {base_url: {{ URL }}}}")
        gate.reload()
        assert "line 1: a name must be a text" in manager.wait_for("STATUS=")
        with client.stream("POST", CHAT, json={**ASKED, "stream": True}) as answer:
            next(answer.iter_lines())
            gate.process.send_signal(signal.SIGTERM)
            manager.wait_for("STOPPING=1")
            assert manager.wait_for("EXTEND_TIMEOUT_USEC=") == "EXTEND_TIMEOUT_USEC=17000000"
        assert gate.process.wait(LEAVE_S) == 0


def test_a_request_on_a_connection_that_is_open_when_it_leaves_is_answered(
    tmp_path: Path, server: RemoteServer
) -> None:
    with gateway({"models": {"a": {"base_url": server.url}}}, tmp_path) as gate, gate.client() as client:
        port = int(gate.url.rpartition(":")[2])
        assert "connection" not in client.post(CHAT, json=ASKED).headers
        gate.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not can_connect(port), LEAVE_S, "new connections to be refused")
        last = client.post(CHAT, json=ASKED)
        assert (last.status_code, last.headers["connection"]) == (200, "close")
        assert gate.process.wait(LEAVE_S) == 0


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Askers:
    """Threads that ask without a pause, each on a connection that it keeps; what has failed."""

    def __init__(self, gate: Gateway, count: int = 4) -> None:
        self.failed: list[str] = []
        self.answered = 0
        self._gate = gate
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        with self._gate.client() as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post(CHAT, json=ASKED)
                except httpx.HTTPError as exc:
                    self.failed.append(repr(exc))
                else:
                    self.answered += 1
                    if answer.status_code != 200:
                        self.failed.append(answer.text)

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_another_one_takes_over_without_a_request_lost(tmp_path: Path, server: RemoteServer, manager: Manager) -> None:
    content = {"models": {"a": {"base_url": server.url}}}
    with gateway(content, tmp_path, NOTIFY_SOCKET=str(manager.path)) as gate, gate.client() as client:
        manager.wait_for("READY=1")
        with Askers(gate) as askers:
            gate.write({"models": {"a": {"base_url": server.url, "aliases": ["new"]}}})
            gate.process.send_signal(signal.SIGUSR2)
            assert gate.process.wait(LEAVE_S) == 0  # its last requests have ended
            seen = askers.answered
            wait_until(lambda: askers.answered > seen + 20, LEAVE_S, "the other one to answer")
        assert askers.failed == []
        manager.wait_for("MAINPID=")
        assert "STOPPING=1" not in manager.heard()  # the service goes on
        assert client.get("/v1/models/new").status_code == 200


def test_a_stream_goes_on_while_another_one_takes_over(tmp_path: Path, server: RemoteServer, manager: Manager) -> None:
    server.streams("a", "b", then="hang")
    content = {"models": {"a": {"base_url": server.url}}}
    with (
        gateway(content, tmp_path, "--drain", "3", NOTIFY_SOCKET=str(manager.path)) as gate,
        gate.client() as client,
        client.stream("POST", CHAT, json={**ASKED, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        gate.process.send_signal(signal.SIGUSR2)
        manager.wait_for("MAINPID=")
        assert httpx.get(f"{gate.url}/health", trust_env=False).status_code == 200
        assert gate.process.poll() is None
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert gate.process.wait(LEAVE_S) == 0


def test_one_that_can_not_take_over_changes_nothing(tmp_path: Path, server: RemoteServer) -> None:
    content = {"models": {"a": {"base_url": server.url}}}
    with gateway(content, tmp_path) as gate, gate.client() as client:
        gate.write({"models": {"a": {"base_url": 7}}})
        gate.process.send_signal(signal.SIGUSR2)
        failed = "this one goes on: it was not ready before it ended"
        wait_until(lambda: failed in gate.told(), LEAVE_S, "the other one to fail")
        assert client.post(CHAT, json=ASKED).status_code == 200
        gate.process.send_signal(signal.SIGUSR2)  # and may be tried again
        wait_until(lambda: gate.told().count(failed) == 2, LEAVE_S, "another to begin")


async def test_a_file_that_can_not_be_read_for_any_reason_is_read_at_its_next_change(
    tmp_path: Path, server: RemoteServer, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setattr(server_module, "WATCH_S", 0.02)
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"base_url": server.url}}}))
    config, outcomes = read_config(file), [ZeroDivisionError("a mistake"), None]

    def read() -> GatewayConfig:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return config

    async def heard(text: str) -> None:
        async with asyncio.timeout(LEAVE_S):
            while not any(text in line for line in manager.heard()):
                await asyncio.sleep(0.01)

    (sock,) = bound(ON_A_FREE_PORT)
    serving = asyncio.create_task(serve(config, ON_A_FREE_PORT, [sock], read, WatchedFile(file)))
    try:
        await heard("READY=1")
        for told in ("stays as it was: ZeroDivisionError('a mistake')", "was read again: 1 models"):
            manager.lines.clear()
            file.write_text(file.read_text() + " ")
            await heard(told)
            assert "READY=1" in manager.lines
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        sock.close()


async def test_what_can_not_be_closed_keeps_it_no_longer_than_is_told(
    tmp_path: Path, server: RemoteServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(_: Catalog) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Catalog, "close", hang)
    monkeypatch.setattr(server_module, "CLOSE_S", 0.1)
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"base_url": server.url}}}))
    (sock,) = bound(ON_A_FREE_PORT)
    gate = server_of(Catalog(read_config(file)), ON_A_FREE_PORT)
    gate.heed_signal()
    async with asyncio.timeout(LEAVE_S):
        await gate.serve([sock])
    assert "not all was closed, or unloaded, after 0.1 s" in caplog.text
