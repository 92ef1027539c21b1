"""vLLM's own API server, as somebody else would start it, on a free port; the routers that stand before several."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine import EngineSettings
from shared_engine.launch.spec import engine_spec

HELLO = [{"role": "user", "content": "Hello"}]
START_S = 300.0
END_S = 10.0


@dataclass(frozen=True)
class Host:
    """Where a server runs.

    Attributes:
        address: at which it listens.
        inside: what a command is put after to run there, such as ``ip netns exec NAME``.
    """

    address: str = "127.0.0.1"
    inside: tuple[str, ...] = ()


HERE = Host()


@dataclass(frozen=True)
class PlainServer:
    """One that answers.

    Attributes:
        group: of its processes, to send signals to.
    """

    url: str
    group: int

    def signal(self, number: int) -> None:
        os.killpg(self.group, number)


@contextmanager
def plain_server(
    settings: Mapping[str, Any],
    folder: Path,
    *,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    host: Host = HERE,
) -> Iterator[PlainServer]:
    """A server with the flags that our engine would have, once it has answered.

    Args:
        folder: gets its log.
        flags: more of vLLM's.
    """
    port = free_port()
    spec = engine_spec(EngineSettings(**settings))
    command = [*host.inside, spec.python, "-m", "vllm.entrypoints.openai.api_server", *spec.argv, *flags]
    log = folder / "vllm_serve.log"
    url = f"http://{host.address}:{port}"
    variables = {"VLLM_HOST_IP": host.address, **(environment or {})}
    with running([*command, "--host", host.address, "--port", str(port)], log, variables) as process:
        wait_for(lambda: _answers(host.address, port, spec.model), process, log)
        yield PlainServer(url, process.pid)


def _answers(host: str, port: int, model: str) -> bool:
    """True when a chat of one token is answered, or refused by a model that does not chat."""
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 1})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status in (200, 404)
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def plain_servers(
    count: int, settings: Mapping[str, Any], folder: Path, *, hosts: Sequence[Host] = (), **more: Any
) -> Iterator[list[PlainServer]]:
    """Several, started side by side; each on a host of its own, where there are some."""
    places = [folder / f"server{number}" for number in range(count)]
    for place in places:
        place.mkdir()
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:

        def start(place: Path, host: Host) -> PlainServer:
            return stack.enter_context(plain_server(settings, place, host=host, **more))

        yield list(pool.map(start, places, hosts or [HERE] * count))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, end_s: float = END_S
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, which is gone at the end, whatever state it is in.

    Args:
        end_s: how long it may take to end by itself.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}, start_new_session=True
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(end_s)
                break


def wait_for(is_up: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when ``is_up()`` is true.

    Raises:
        AssertionError: the process has ended, or it took too long; with its last words.
    """
    deadline = time.monotonic() + START_S
    while not is_up():
        assert process.poll() is None, f"{process.args!r} ended: {log.read_text(errors='replace')[-3000:]}"
        assert time.monotonic() < deadline, f"not up in {START_S:g} s: {log.read_text(errors='replace')[-3000:]}"
        time.sleep(0.02)
