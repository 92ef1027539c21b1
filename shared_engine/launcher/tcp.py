"""TCP beside the Unix socket: vLLM's own application for other programs, as OpenAI's API and no more.

vLLM's server is given one socket. Whoever has it, and so is the same user, may have further ones opened, by ``OPEN``;
each guards itself: by its key, by what it lets through, and by the lease, which says that a request runs.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import hmac
import importlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine.launcher.about import ABOUT, max_num_seqs
from shared_engine.launcher.shortcut import Shortcut
from shared_engine.machine.sockets import is_loopback
from shared_engine.runtime.lease import Lease
from shared_engine.runtime.record import Record, read_record

OPEN = "/vllm-local/open"
"""``{"host", "port", "key", "folder"}`` -> ``{"port"}``, or ``{"error"}``."""
TRIED_PORTS = 100
HEALTH = "/health"
# vLLM's other routes change the server, or tell of it: only who has the Unix socket may use them.
PATHS = frozenset(
    (
        "/health",
        "/ping",
        "/version",
        "/metrics",
        "/tokenize",
        "/detokenize",
        "/score",
        "/rerank",
        "/v2/rerank",
        "/pooling",
        "/classify",
    )
)
ROOT, NOT_BELOW_ROOT = "/v1/", ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Refusal:
    """Why a request over TCP is not let through."""

    status: int
    message: str
    kind: str = "invalid_request_error"


# ---- one request


def refusal_of(scope: Scope, key: str) -> Refusal | None:
    """Why a request may not pass; None for one that may.

    Without a key, a browser would let any page that is open in it ask a server of the loopback device: what says that
    it comes from a page of elsewhere (Origin), or was sent to a name of somebody else's (Host), is refused.
    """
    path, headers = scope["path"], dict(scope["headers"])
    if path == HEALTH:
        return None
    if key:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        is_preflight = scope.get("method") == "OPTIONS"  # a browser's, which never has the key
        if not is_preflight and not (scheme.lower() == b"bearer" and hmac.compare_digest(given, key.encode())):
            return Refusal(401, "the API key is missing, or not the one of this engine", "authentication_error")
    else:
        for name in (b"origin", b"host"):
            host = headers.get(name, b"localhost").decode("latin-1")
            if not is_loopback(_host_of(host)):
                return Refusal(403, f"{name.decode()} {host} is not of this machine: such requests need an api_key")
    if path not in PATHS and not (path.startswith(ROOT) and path not in NOT_BELOW_ROOT):
        return Refusal(404, f"{path} is not available over TCP", "not_found_error")
    return None


def _host_of(address: str) -> str:
    """The host in ``http://host:port``, ``host:port`` or ``[::1]:port``."""
    authority = address.rpartition("//")[2]
    if authority.startswith("["):
        return authority.partition("]")[0].removeprefix("[")
    return authority.partition(":")[0]


class Guard:
    """vLLM's application behind one TCP socket.

    Args:
        key: that each request must have as its bearer token; empty for none.
        folder: the engine's runtime directory.
    """

    def __init__(self, app: App, key: str, folder: Path) -> None:
        self._app = app
        self._key = key
        self._lease = Lease(folder / "lease")
        self._record_file = folder / "record.json"
        self._known: tuple[tuple[int, int], Record | None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = refusal_of(scope, self._key)
        if refusal is not None:
            return await _refuse(scope, send, refusal)
        if scope["path"] == HEALTH:
            return await self._app(scope, receive, send)
        # As every process that asks the engine: while the lease is held, it is not evicted, and then idle from now on.
        if not self._lease.try_take():
            return await _refuse(scope, send, _NOT_NOW)
        try:
            if self._is_ready():
                await self._app(scope, receive, send)
            else:
                await _refuse(scope, send, _NOT_NOW)
        finally:
            self._lease.give_back()

    def _is_ready(self) -> bool:
        """Not asleep, and not about to end."""
        try:
            status = os.stat(self._record_file)
        except OSError:
            return False
        signature = (status.st_mtime_ns, status.st_ino)
        if self._known is None or self._known[0] != signature:
            self._known = signature, read_record(self._record_file)
        record = self._known[1]
        return record is not None and record.is_usable


_NOT_NOW = Refusal(
    503, "the engine is asleep, or leaves memory; a request by vllm-local brings it back", "server_error"
)


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
    error = {"message": refusal.message, "type": refusal.kind, "param": None, "code": refusal.status}
    await _answer(send, refusal.status, {"error": error})


async def _answer(send: Send, status: int, content: object) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# ---- sockets


def bound(host: str, first_port: int) -> socket.socket:
    """A socket that listens on the first free port from ``first_port`` on; on any for 0.

    Raises:
        OSError: the host is not one of this machine's, the port is not ours to have, or all of them are taken.
    """
    family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    ports = range(first_port, min(first_port + TRIED_PORTS, 65536)) if first_port else (0,)
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], port))
            listener.listen()  # two may bind one port; only one of them may listen
            return listener
        except OSError as exc:
            listener.close()
            if exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"ports {ports[0]} to {ports[-1]} are all taken")


class Entrance:
    """vLLM's application behind the Unix socket, and ``OPEN`` and ``ABOUT`` beside it.

    Args:
        server: uvicorn's, of which further sockets are made.
    """

    def __init__(self, app: App, server: Any) -> None:
        self._app = app
        self._server = server
        self._opened: dict[tuple[str, int, str], int] = {}
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == ABOUT:
            return await _answer(send, 200, {"max_num_seqs": max_num_seqs(self._server.config.app)})
        if scope.get("path") != OPEN:
            return await self._app(scope, receive, send)
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            content = {"port": await self._open(**json.loads(body))}
        except OSError as exc:
            return await _answer(send, 409, {"error": exc.strerror or str(exc)})
        await _answer(send, 200, content)

    async def _open(self, host: str, port: int, key: str, folder: str) -> int:
        """The port of a socket that was opened for the same wish, or is now."""
        async with self._opening:
            wish = (host, port, key)
            if wish not in self._opened:
                self._opened[wish] = await self._listen(bound(host, port), Guard(self._app, key, Path(folder)))
            return self._opened[wish]

    async def _listen(self, listener: socket.socket, app: App) -> int:
        server, loop = self._server, asyncio.get_running_loop()
        config = copy.copy(server.config)
        config.loaded_app = app

        def protocol() -> Any:
            return config.http_protocol_class(
                config=config, server_state=server.server_state, app_state=server.lifespan.state, _loop=loop
            )

        server.servers.append(await loop.create_server(protocol, sock=listener, backlog=config.backlog))
        return int(listener.getsockname()[1])


def make_entrance() -> None:
    """Have the server of this process, which is about to begin, open further sockets when it is asked to."""
    uvicorn: Any = importlib.import_module("uvicorn")
    serve = uvicorn.Server.serve

    async def serve_with_entrance(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.config.loaded:
            self.config.load()
        app = Shortcut(self.config.loaded_app, self.config.app)
        self.config.loaded_app = Entrance(app, self)
        return await serve(self, *args, **kwargs)

    uvicorn.Server.serve = serve_with_entrance
