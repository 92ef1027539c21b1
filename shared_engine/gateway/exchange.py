"""One request of a client's connection and its answer, as an ASGI application takes the one and gives the other."""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Scope

from shared_engine.gateway.refusals import SHUT_DOWN

if TYPE_CHECKING:
    from shared_engine.gateway.connections import ClientConnection

END_AT_DEPARTURE = "vllm_local.end_at_departure"
"""An extension of the scope: called, it has the application's task cancelled when its client leaves."""
MOST_UNREAD = 64 << 10
"""So many bytes of a body wait to be read; then its client waits."""
_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in http.HTTPStatus}
logger = logging.getLogger(__name__)


def status_line(status: int) -> bytes:
    return _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


class Exchange:
    """
    Attributes:
        keeps_alive: another one may follow it.
        has_begun: the answer has, so that nothing else can be answered.
    """

    def __init__(self, connection: ClientConnection, scope: Scope, *, keeps_alive: bool) -> None:
        self.scope = {**scope, "extensions": {END_AT_DEPARTURE: self._end_at_departure}}
        self.keeps_alive = keeps_alive
        self.has_begun = False
        self._connection = connection
        self._body = bytearray()
        self._is_whole = self._is_read = self._is_paused = False
        self._is_over = self._is_lost = False
        self._task: asyncio.Task[None] | None = None
        self._is_to_be_cancelled = False
        self._is_chunked = False
        self._has_body = True
        self._head = b""
        self._left: int | None = None
        """Bytes of the answer that are still to come, where it says how many."""
        self._changed = asyncio.Event()
        expected = [value.lower() for name, value in scope["headers"] if name == b"expect"]
        self._is_waited_for = expected == [b"100-continue"]

    async def run(self, app: ASGIApp) -> None:
        """Have it answered. What ends without a whole answer ends its connection, so that nobody takes it for whole."""
        self._task = asyncio.current_task()
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # by the server
            if not (self.has_begun or self._is_lost):
                response = SHUT_DOWN.response(self.scope["path"])
                self._begin(response.status_code, response.raw_headers)
                self._send(bytes(response.body), is_last=True)
            raise
        except Exception:
            logger.exception("%s %r has failed", self.scope["method"], self.scope["path"])
        finally:
            if not self._is_over:
                self._connection.transport.close()

    # ---- for its connection

    def add(self, piece: bytes, *, is_last: bool = False) -> None:
        """More of its body."""
        if self._is_over:
            return
        self._body += piece
        self._is_whole = is_last
        if len(self._body) > MOST_UNREAD and not self._is_paused:
            self._is_paused = True
            self._connection.transport.pause_reading()
        self._changed.set()

    def lose(self) -> None:
        """Its client has left, or has sent what can't be read. What is sent from now on goes nowhere."""
        self._is_lost = True
        self._changed.set()
        if self._is_to_be_cancelled and self._task is not None and not self._is_over:
            self._task.cancel()

    # ---- for the application

    def _end_at_departure(self) -> None:
        self._is_to_be_cancelled = True
        if self._is_lost:
            self.lose()

    async def receive(self) -> Message:
        if self._is_waited_for and not (self.has_begun or self._is_lost):
            self._is_waited_for = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._is_over or self._is_lost):
            if self._body or (self._is_whole and not self._is_read):
                body, self._body, self._is_read = bytes(self._body), bytearray(), self._is_whole
                self._resume()
                return {"type": "http.request", "body": body, "more_body": not self._is_whole}
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self._connection.can_write.is_set():
            await self._connection.can_write.wait()
        if self._is_lost:
            return
        if not self.has_begun:
            self._begin(message["status"], message.get("headers", ()))
        elif not self._is_over:
            self._send(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError("the answer has ended already")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.has_begun = True
        self.keeps_alive = self.keeps_alive and not self._connection.is_leaving
        head = [status_line(status)]
        for name, value in (*self._connection.server_state.default_headers, *headers):
            name = name.lower()
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                self.keeps_alive = self.keeps_alive and value.lower() != b"close"
                continue
            head.append(b"%b: %b\r\n" % (name, value))
        if self.scope["method"] == "HEAD" or status in (204, 304):
            self._has_body, self._left = False, None
        elif self._left is None:
            self._is_chunked = self.scope["http_version"] == "1.1"
            self.keeps_alive = self.keeps_alive and self._is_chunked  # else its end is the connection's
            if self._is_chunked:
                head.append(b"transfer-encoding: chunked\r\n")
        if not self.keeps_alive:
            head.append(b"connection: close\r\n")
        head.append(b"\r\n")
        whole = b"".join(head)
        if whole.count(b"\n") != len(head) or whole.count(b"\r") != len(head):
            raise ValueError("a header of the answer has a line break in it")
        self._head = whole
        # With the first of its body, which most applications send at once.
        self._connection.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._head and not self._connection.transport.is_closing():
            self._write(b"")

    def _write(self, data: bytes) -> None:
        head, self._head = self._head, b""
        if head or data:
            self._connection.transport.write(head + data)

    def _send(self, body: bytes, *, is_last: bool) -> None:
        if not self._has_body:
            body = b""
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_last and self._left):
                raise ValueError("the answer has another length than its header says")
        elif self._is_chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"0\r\n\r\n" if is_last else b"")
        self._write(body)
        if is_last:
            self._is_over = True
            self._resume()
            self._changed.set()
            self._connection.answered(self)

    def _resume(self) -> None:
        if self._is_paused and not self._connection.transport.is_closing():
            self._is_paused = False
            self._connection.transport.resume_reading()
