"""A client's connection: HTTP/1.1, parsed by llhttp, in the place of uvicorn's own protocol classes.

What is not HTTP is refused in OpenAI's form, and so is what two readers might take for different requests. Who sends no
request is not kept; a request that is on its way when the gateway leaves is answered.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import deque
from typing import Any, cast
from urllib.parse import unquote

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import Scope
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from shared_engine.gateway.exchange import Exchange, status_line
from shared_engine.gateway.guard import MAX_HEAD_BYTES
from shared_engine.gateway.refusals import RefusedError

HEAD_S = 30.0
"""How long the line and the headers of a request may take to come."""
BODY_S = 60.0
"""And its body."""
LAST_REQUEST_S = 1.0
"""How long a connection without a request stays when the gateway leaves: one may be on its way."""
TAKE_S = 60.0
"""How long a client may take nothing of what is sent to it."""
MOST_AHEAD = 16
"""So many requests a client may send before the first of them is answered."""
_idle: dict[Any, None] = {}
"""Those without a request, in the order in which they became so."""


def most_connections() -> int:
    """So many have a file for a model's server each, too."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def count(connection: Any, state: ServerState) -> None:
    """One more, without a request; where no more fit, the one that has been so for longest makes room."""
    everyone = cast("set[Any]", state.connections)
    everyone.add(connection)
    _idle[connection] = None
    if len(everyone) > most_connections():
        oldest = next(iter(_idle))
        del _idle[oldest]
        oldest.make_room()


def forget(connection: Any, state: ServerState) -> None:
    """It is no more."""
    cast("set[Any]", state.connections).discard(connection)
    _idle.pop(connection, None)


class ClientConnection(asyncio.Protocol):
    """One at a time its requests go to the application, in their order."""

    transport: asyncio.Transport

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.server_state = server_state
        self._app = config.loaded_app
        self._app_state = app_state
        self._keep_alive_s = config.timeout_keep_alive
        self._parser = HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_in_head = False
        self._unread = 0
        self._reading: Exchange | None = None
        """The request whose body comes."""
        self._current: Exchange | None = None
        """The one that is answered; those after it wait."""
        self._waiting: deque[Exchange] = deque()
        self.is_leaving = self._is_deaf = False
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        """Ends a Unix socket's connection whose client takes nothing."""
        self._ends_at: float | None = None
        """When it is closed if no request has come."""
        self.can_write = asyncio.Event()
        self.can_write.set()

    # ---- as the event loop calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        sock: socket.socket = transport.get_extra_info("socket")
        self._is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._is_tcp:  # the kernel ends it then, and its generation with it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(TAKE_S * 1000))
        self._scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "scheme": "https" if is_ssl(self.transport) else "http",
            "root_path": "",
        }
        self._wait(HEAD_S)
        count(self, self.server_state)

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        if self._is_idle and self._reading is None and self._unread == 0:
            self._wait(HEAD_S)
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._is_deaf = True  # to what the client speaks now; its request is answered as any other
        except HttpParserError as exc:
            self._refuse(_invalid(str(exc.__context__ or exc)))
        else:
            if self._unread > MAX_HEAD_BYTES:
                self._refuse(_invalid("a head, or the end of a body, is too long"))
            elif self._unread > 2 and self._reading is None and not self._is_in_head:
                self._refuse(_invalid("lines without a request"))
            elif self._current is not None and self._current is self._reading and self._ends_at is None:
                self._wait(BODY_S)

    def eof_received(self) -> None:
        pass

    def connection_lost(self, _: Exception | None) -> None:
        forget(self, self.server_state)
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()
        self._is_deaf = True
        self._waiting.clear()
        if self._current is not None:
            self._current.lose()
        self.can_write.set()

    def pause_writing(self) -> None:
        self.can_write.clear()
        if not self._is_tcp:
            self._stuck = self.loop.call_later(TAKE_S, self.transport.abort)

    def resume_writing(self) -> None:
        self.can_write.set()
        if self._stuck is not None:
            self._stuck.cancel()

    # ---- as the parser calls it

    def on_message_begin(self) -> None:
        self._url, self._headers, self._is_in_head = b"", [], True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what follows a body are no headers: nobody has looked at them
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_in_head, self._unread = False, 0
        version, is_upgrade = self._parser.get_http_version(), self._parser.should_upgrade()
        _check(version, self._url, self._headers, is_upgrade=is_upgrade)
        raw_path, _, query = self._url.partition(b"?")
        path = raw_path.decode("ascii")
        scope = {
            **self._scope,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }
        keeps_alive = version == "1.1" and self._parser.should_keep_alive() and not is_upgrade
        self._reading = exchange = Exchange(self, scope, keeps_alive=keeps_alive)
        if self._current is None:
            self._begin(exchange)
        elif len(self._waiting) < MOST_AHEAD:
            self._waiting.append(exchange)
        else:
            raise ValueError("too many requests before the first is answered")

    def on_body(self, piece: bytes) -> None:
        self._unread = 0
        if self._reading is not None:
            self._reading.add(piece)

    def on_message_complete(self) -> None:
        self._unread = 0
        if self._reading is not None:
            self._reading.add(b"", is_last=True)
            if self._reading is self._current:
                self._ends_at = None
            self._reading = None

    # ---- its requests

    def _begin(self, exchange: Exchange) -> None:
        self._current, self._ends_at = exchange, None
        _idle.pop(self, None)
        task = self.loop.create_task(exchange.run(self._app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def answered(self, exchange: Exchange) -> None:
        """An answer has ended, and what is to be known of it with it."""
        if self._current is not exchange:
            return
        self._current = None
        if self.transport.is_closing():
            return
        if not exchange.keeps_alive:
            self.transport.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())
            if self._current is self._reading:
                self._wait(BODY_S)
        else:
            _idle[self] = None
            self._wait(HEAD_S if self._reading is exchange else self._keep_alive_s)
            if self.is_leaving:  # the answer had begun before, and could not say so
                self.loop.call_later(LAST_REQUEST_S, self._end)

    def _refuse(self, refusal: RefusedError) -> None:
        """Say so, where that can't be taken for the answer to another request; nothing more is read."""
        self._is_deaf = True
        current = self._current
        if current is not None and current is not self._reading:
            current.keeps_alive = False  # its answer is the last one
            self._waiting.clear()
            return
        was_refused_before = current is None and self._reading is not None
        if not (was_refused_before or (current is not None and current.has_begun)):
            path = "" if current is None else current.scope["path"]
            body = refusal.body(path)
            head = status_line(refusal.status) + b"content-type: application/json\r\nconnection: close\r\n"
            self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        if current is not None:
            current.lose()
        self.transport.close()

    # ---- its end

    def shutdown(self) -> None:
        """The next answer to begin is the last one, and says so; where none does soon, the connection ends."""
        self.is_leaving = True
        if self._is_idle:
            self.loop.call_later(LAST_REQUEST_S, self._end)

    @property
    def _is_idle(self) -> bool:
        return self._current is None

    def _end(self) -> None:
        if self._is_idle:
            self.transport.close()

    def make_room(self) -> None:
        """Another connection needs its file."""
        self.transport.close()

    def _wait(self, seconds: float) -> None:
        """One timer for all of a connection's waits: it looks, when it rings, whether it has waited for long enough."""
        self._ends_at = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._ends_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._ends_at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._ends_at is None:
            return
        left_s = self._ends_at - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
        elif self._current is not None:
            self._refuse(RefusedError(408, f"the body was not there after {BODY_S:g} s", "body_timeout"))
        else:
            self.transport.close()


def _invalid(why: str) -> RefusedError:
    return RefusedError(400, f"not valid HTTP: {why}", "invalid_http")


def _check(version: str, url: bytes, headers: list[tuple[bytes, bytes]], *, is_upgrade: bool) -> None:
    """What the parser takes, and another reader might take otherwise.

    Raises:
        ValueError: it is refused, and why.
    """
    names = [name for name, _ in headers]
    if version not in ("1.0", "1.1"):
        raise ValueError(f"HTTP/{version} is not spoken here")
    if not url.startswith(b"/"):
        raise ValueError("an address begins with /")
    if names.count(b"host") != 1 and (version == "1.1" or b"host" in names):
        raise ValueError("give one Host")
    if b"transfer-encoding" in names:
        codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        if codings != [b"chunked"] or version == "1.0":
            raise ValueError("the only Transfer-Encoding is chunked, once")
    if is_upgrade and (b"transfer-encoding" in names or b"content-length" in names):
        raise ValueError("what asks for another protocol has no body")
