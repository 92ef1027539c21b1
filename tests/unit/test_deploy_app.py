"""The app in the images of deploy/: keys, probes, errors, and how it ends. Servers by the environment, as there."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from aiohttp import ClientError, web
from aiohttp.test_utils import TestClient, TestServer

from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, running_server
from tests.support.waiting import POLL_S

APP = REPOSITORY / "deploy" / "app.py"
HEADERS = {"Authorization": "Bearer of-the-app"}
NOBODY = "http://127.0.0.1:9/v1"  # the discard port: nothing listens


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    with running_server() as running:
        monkeypatch.setenv("VLLM_API_URL", f"{running.url}/v1")
        monkeypatch.setenv("VLLM_API_KEY", "of-the-server")
        monkeypatch.setenv("VLLM_MAX_RETRIES", "0")
        running.streams("An", " answer")
        yield running


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """deploy/app.py, with a key."""
    monkeypatch.setenv("APP_KEY", "of-the-app")
    spec = importlib.util.spec_from_file_location("deploy_app", APP)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.RETRY_S = 0.01  # type: ignore[attr-defined]
    return loaded


def client_of(module: ModuleType) -> TestClient[web.Request, web.Application]:
    return TestClient(TestServer(module.make_app()))


async def asked(
    client: TestClient[Any, Any], body: object = None, headers: dict[str, str] = HEADERS
) -> tuple[int, str]:
    question = {"question": "Hello"} if body is None else body
    async with client.post("/ask", data=json.dumps(question), headers=headers) as response:
        return response.status, await response.text()


async def ready(client: TestClient[Any, Any]) -> tuple[int, str]:
    async with client.get("/readyz") as response:
        return response.status, await response.text()


async def test_an_answer_comes_as_text_from_the_server_that_the_environment_names(
    server: RemoteServer, module: ModuleType
) -> None:
    async with client_of(module) as client:
        assert await asked(client) == (200, "An answer")
    headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer of-the-server"
    assert body["messages"] == [{"role": "user", "content": "Hello"}]


async def test_several_servers_share_the_questions(
    server: RemoteServer, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server() as second:
        second.streams("Another")
        monkeypatch.setenv("VLLM_API_URL", f"{server.url}/v1,{second.url}/v1")
        async with client_of(module) as client:
            found = {await asked(client, {"question": f"Question {number}"}) for number in range(12)}
    assert found == {(200, "An answer"), (200, "Another")}


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "of-the-app"}])
async def test_without_the_key_there_is_no_answer(
    server: RemoteServer, module: ModuleType, given: dict[str, str]
) -> None:
    async with client_of(module) as client:
        assert (await asked(client, headers=given))[0] == 401
        async with client.get("/healthz") as response:
            assert response.status == 200, "probes have no key"
    assert server.requests == []


@pytest.mark.parametrize("body", [[], "text", {}, {"text": "Hello"}, 1])
async def test_a_body_without_a_question_is_refused(server: RemoteServer, module: ModuleType, body: object) -> None:
    async with client_of(module) as client:
        status, text = await asked(client, body)
        assert status == 400
        assert "question" in text
        async with client.post("/ask", data=b"{", headers=HEADERS) as response:
            assert response.status == 400


async def test_what_fails_before_a_word_is_said_and_later_cuts_the_answer(
    server: RemoteServer, module: ModuleType
) -> None:
    async with client_of(module) as client:
        server.fails(500, message="out of order")
        status, text = await asked(client)
        assert status == 502
        assert "out of order" in text
        server.streams("An", then="cut")
        with pytest.raises(ClientError):  # not a short answer
            await asked(client)


async def test_it_is_ready_once_an_answer_was_possible_and_stays_so(
    server: RemoteServer, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_URL", NOBODY)
    async with client_of(module) as client:
        async with asyncio.timeout(10):
            while (found := await ready(client))[1] == "starting\n":
                await asyncio.sleep(POLL_S)
        assert found[0] == 503
        assert "127.0.0.1:9" in found[1]
    monkeypatch.setenv("VLLM_API_URL", f"{server.url}/v1")
    async with client_of(module) as client:
        async with asyncio.timeout(10):
            while await ready(client) != (200, "ready\n"):
                await asyncio.sleep(POLL_S)
        server.fails(503)
        assert (await asked(client))[0] == 502
        assert (await ready(client))[0] == 200, "what is wrong with all servers is no reason to take all apps away"


# ---- as a process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(**variables: str) -> tuple[subprocess.Popen[bytes], str]:
    port = free_port()
    environment = {**os.environ, "APP_PORT": str(port), "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.Popen([sys.executable, APP], env=environment, stderr=subprocess.PIPE), f"http://127.0.0.1:{port}"


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(POLL_S)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "app.example"])
def test_without_a_key_it_listens_on_this_machine_only(server: RemoteServer, host: str) -> None:
    process, _ = started(APP_HOST=host, APP_KEY="")
    _, words = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"APP_HOST={host} is open to others: set APP_KEY" in words.decode()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_on_this_machine_it_needs_no_key(server: RemoteServer, host: str) -> None:
    process, url = started(APP_HOST=host, APP_KEY="")
    wait_until_up(url)
    request = urllib.request.Request(f"{url}/ask", data=b'{"question": "Hello"}')
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.read() == b"An answer"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.slow
def test_on_sigterm_what_is_under_way_is_finished(server: RemoteServer) -> None:
    asked_for, go_on = threading.Event(), threading.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked_for.set()
        await asyncio.to_thread(go_on.wait)
        return await finished(request)

    server.streams("At", " last")
    finished, server.handler = server.handler, slow
    process, url = started(APP_KEY="")
    wait_until_up(url)
    found: list[bytes] = []

    def ask() -> None:
        request = urllib.request.Request(f"{url}/ask", data=b'{"question": "Hello"}')
        with urllib.request.urlopen(request, timeout=30) as response:
            found.append(response.read())

    caller = threading.Thread(target=ask)
    caller.start()
    assert asked_for.wait(10)
    process.send_signal(signal.SIGTERM)
    refused = False
    deadline = time.monotonic() + 10
    while not refused and time.monotonic() < deadline:  # it listens no more, and goes on
        with socket.socket() as probe:
            refused = probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
    assert refused
    assert process.poll() is None
    go_on.set()
    caller.join(10)
    process.communicate(timeout=30)
    assert (found, process.returncode) == ([b"At last"], 0)


@pytest.mark.slow
def test_a_caller_that_leaves_ends_its_request_in_the_server_too(server: RemoteServer) -> None:
    server.streams("An", then="hang")
    process, url = started(APP_KEY="")
    wait_until_up(url)
    request = urllib.request.Request(f"{url}/ask", data=b'{"question": "Hello"}')
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.read(2) == b"An"
    assert server.aborted.wait(10)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
