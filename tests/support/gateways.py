"""The gateway in a test: an application of this process, or ``vllm-local serve`` with the file that it reads."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shared_engine import Engine
from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig, read_config
from shared_engine.gateway.listening import Listening, bound
from shared_engine.gateway.server import server_of
from tests.support.callers import HELLO
from tests.support.command import COMMAND, given_to
from tests.support.paths import REPOSITORY
from tests.support.remote_server import Handler, running_server
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
LEAVE_S = 20.0
ON_A_FREE_PORT = Listening(port=0, drain_s=1)
# As systemd starts a service that has sockets: they are its files from 3 on.
PASSING = """
import fcntl, json, os, sys
files = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in json.loads(sys.argv[1])]
for at, each in enumerate(files):
    os.dup2(each, 3 + at)
    os.close(each)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(files)))
os.execv(sys.argv[2], sys.argv[2:])
"""


@asynccontextmanager
async def asking(
    config: GatewayConfig, *, is_loopback: bool = True, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    catalog = Catalog(config)
    transport = httpx.ASGITransport(gateway_app(catalog, is_loopback=is_loopback))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options) as client:
        yield client
    await catalog.close()


def chat(model: str, **more: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"model": model, "messages": HELLO, **more}


def entry(engine: Engine, **fields: Any) -> dict[str, Any]:
    """Of models.yaml: what the gateway serves is this engine."""
    return {**given_to(engine), **fields}


@dataclass
class Gateway:
    """One that listens.

    Attributes:
        url: without ``/v1``.
    """

    url: str
    process: subprocess.Popen[str]
    file: Path
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def write(self, content: Mapping[str, Any]) -> None:
        """Another file in its place; JSON is YAML too."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(content))
        new.replace(self.file)

    def reload(self) -> None:
        """Have it read its file, and return when it has."""
        before = self.told()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the configuration" in self.told()[len(before) :], LEAVE_S, "the file to be read again")

    def told(self) -> str:
        return self.log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LEAVE_S)


@contextmanager
def running_gateway(
    folder: Path,
    handler: Handler | None = None,
    url: str | None = None,
    listening: Listening = ON_A_FREE_PORT,
    **fields: Any,
) -> Iterator[Any]:
    """One in a thread of this process, before the server at ``url``, or one of ours; its address."""
    (sock,) = bound(listening)
    with running_server() as far, sock:
        far.handler = handler or far.handler
        file = folder / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": url or far.url}}, **fields}))

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


@contextmanager
def gateway(
    content: Mapping[str, Any],
    folder: Path,
    *options: str,
    passed: Sequence[socket.socket] = (),
    **environment: str,
) -> Iterator[Gateway]:
    """On a free port; it must have left by itself when the test ends, or it is ended.

    Args:
        content: of its models.yaml.
        passed: sockets that it is started with, in place of a port.
    """
    file, log = folder / "models.yaml", folder / "gateway.log"
    file.write_text(json.dumps(content))
    words = [*COMMAND, "serve", "--config", str(file), "--port", "0", *options]
    numbers = [each.fileno() for each in passed]
    if passed:
        words = [sys.executable, "-c", PASSING, json.dumps(numbers), *words]
    with log.open("w") as told:
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            pass_fds=numbers,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Gateway(line.split("/v1 ")[0], process, file, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close() if process.stdout else None
