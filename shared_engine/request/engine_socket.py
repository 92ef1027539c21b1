"""HTTP/1.1 to an engine's Unix socket, and no more than that takes: it is what every request to a local engine goes by.

aiohttp, by which every other server is asked, takes twice the processor time: it knows cookies, proxies, redirects,
packed bodies, and looks for them. Parsed is by llhttp, as there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict

from shared_engine.errors import RequestError, ServerConnectionError, ServerUnreachableError
from shared_engine.request.client import CONNECT_TIMEOUT_S, KEEP_ALIVE_S, STALE_WITHIN_S, Client, why_not
from shared_engine.request.connection_budget import Slot, take_slot
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.open_connections import are_too_many, hang_up, note

MOST_UNREAD = 256 << 10
"""So many bytes of an answer wait to be read; then its engine waits."""
_NOTHING = contextlib.nullcontext()


class EngineSocket(Client):
    """Requests to one engine, from one event loop, over connections that are used again."""

    def __init__(self, path: str) -> None:
        self.url = "http://engine"  # over a Unix socket the host is a matter of form
        self.socket_path = path
        self.where = f"the engine's socket {path}"
        self._open: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
        self._idle: list[_Wire] = []
        self._is_closed = False

    async def send(
        self, method: str, path: str, body: bytes | None, timeout: float | None, headers: HeaderPairs = ()
    ) -> SocketAnswer:
        """See Client, and HttpClient for the request that is sent again."""
        message = _message(method, path, body, (*self._headers, *headers))
        while True:
            slot = await take_slot() if method == "POST" else None
            used = self._used()
            try:
                wire = used or await self._connected(timeout)
            except BaseException:
                if slot is not None:
                    slot.give_back()
                raise
            sent_at = time.monotonic()
            answer = wire.ask(message, SocketAnswer(self, wire, timeout, slot))
            try:
                await answer.begun()
            except ServerConnectionError:
                if used is None or time.monotonic() - sent_at > STALE_WITHIN_S:
                    raise
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    def _used(self) -> _Wire | None:
        """A connection that was used before, and that its engine does not close now."""
        while self._idle:
            wire = self._idle.pop()
            if time.monotonic() - wire.idle_since < KEEP_ALIVE_S:
                return wire
            wire.transport.close()
        return None

    async def _connected(self, timeout: float | None) -> _Wire:
        limit_s = CONNECT_TIMEOUT_S if timeout is None else min(CONNECT_TIMEOUT_S, timeout)
        try:
            async with asyncio.timeout(limit_s):
                loop = asyncio.get_running_loop()
                _, wire = await loop.create_unix_connection(lambda: _Wire(self), self.socket_path)
        except TimeoutError as exc:
            raise ServerUnreachableError(f"{self.where} did not accept a connection in {limit_s:g} s") from exc
        except OSError as exc:
            raise ServerUnreachableError(f"{self.where} can't be reached: {why_not(exc)}") from exc
        self._open.add(wire.transport)
        note(wire.transport)
        return wire

    def keep(self, wire: _Wire) -> None:
        """For the next request, unless this process has too many."""
        if self._is_closed or are_too_many():
            wire.transport.close()
            return
        wire.idle_since = time.monotonic()
        self._idle.append(wire)

    def forget(self, wire: _Wire) -> None:
        """It is closed."""
        if wire in self._idle:
            self._idle.remove(wire)

    def our_errors(
        self, timeout: float | None, began: float, *, has_begun: bool = False  # noqa: ARG002
    ) -> contextlib.AbstractContextManager[None]:  # fmt: skip
        return _NOTHING  # what is raised here is ours already

    def hang_up(self) -> None:
        hang_up(self._open)

    async def close(self) -> None:
        """Those that carry a request are closed when it has ended."""
        self._is_closed = True
        for wire in self._idle:
            wire.transport.close()
        self._idle.clear()


class SocketAnswer:
    """An answer, as ``Client.send`` gives one. Its connection is free when it is whole, whoever reads it when.

    Attributes:
        status: 0 until it has begun.
    """

    def __init__(self, client: EngineSocket, wire: _Wire, timeout: float | None, slot: Slot | None) -> None:
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self._client = client
        self._wire: _Wire | None = wire
        self._slot = slot
        self._loop = asyncio.get_running_loop()
        self._began = self._heard = self._loop.time()
        self._timeout = timeout
        self._timer = None if timeout is None else self._loop.call_later(timeout, self._look)
        self._pieces: list[bytes] = []
        self._unread = 0
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---- for who has asked

    @property
    def content(self) -> SocketAnswer:
        return self

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()

    async def begun(self) -> None:
        """
        Raises:
            RequestError: it did not.
        """
        while not self.status:
            await self._change()

    async def readany(self) -> bytes:
        """What has come of the body; nothing at its end.

        Raises:
            RequestError: it was cut off.
        """
        while not self._pieces and self._wire is not None:
            await self._change()
        if not self._pieces:
            if self._error is not None:
                raise self._error
            return b""
        found = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if self._unread > MOST_UNREAD and self._wire is not None:
            self._heard = self._loop.time()
            self._wire.transport.resume_reading()
        self._unread = 0
        return found

    async def read(self) -> bytes:
        """All of it.

        Raises:
            RequestError: it was cut off.
        """
        found = b""
        while piece := await self.readany():
            found = found + piece if found else piece
        return found

    def close(self) -> None:
        """One that is not whole is ended: its engine sees that nobody wants it, and so does who still reads it."""
        if self._wire is not None:
            self._wire.transport.abort()
            where = self._client.where
            self.end(self._error or ServerConnectionError(f"{where}: the answer was left before it was whole"))

    release = close

    async def _change(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ---- for its connection

    def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = status, CIMultiDict(headers)

    def add(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)

    def heard(self) -> None:
        """Something has come; wake who waits for it."""
        self._heard = self._loop.time()
        is_read = self._unread <= MOST_UNREAD
        self._unread = sum(map(len, self._pieces))
        if self._wire is not None and is_read and self._unread > MOST_UNREAD:
            self._wire.transport.pause_reading()
        self._wake()

    def end(self, error: RequestError | None = None) -> None:
        """It is whole, or nothing more will come of it."""
        self._error = error
        self._end()
        self._wake()

    def fail(self, what: str) -> None:
        until = "the answer was whole" if self.status else "it had answered"
        passed_s = self._loop.time() - self._began
        self.end(
            ServerConnectionError(f"{self._client.where} {what} before {until}, {passed_s:.1f} s after the request")
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        is_closing = self._wire is not None and self._wire.transport.is_closing()
        if self._wire is not None:
            self._wire.answer, self._wire = None, None
        if self._timer is not None:
            self._timer.cancel()
        if self._slot is not None:
            if is_closing:
                self._loop.call_soon(self._slot.give_back)  # after the file is closed, which the loop does next
            else:
                self._slot.give_back()

    def _look(self) -> None:
        """End it where the engine was silent for too long; not where it is we who don't read."""
        assert self._timeout is not None
        if self._unread > MOST_UNREAD:
            self._heard = self._loop.time()
        left_s = self._heard + self._timeout - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        elif self._wire is not None:  # which stays until it is closed: what its engine does is part of the error
            self._error = self._client.silent(self._timeout)
            self._wake()


class _Wire(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    transport: asyncio.Transport
    idle_since = 0.0

    def __init__(self, client: EngineSocket) -> None:
        self._client = client
        self._parser = HttpResponseParser(self)
        self.answer: SocketAnswer | None = None
        self._headers: list[tuple[str, str]] = []
        self._is_kept = self._is_whole = self._is_head = False

    def ask(self, message: bytes, answer: SocketAnswer) -> SocketAnswer:
        """Send it; ``answer`` gets what comes back."""
        self.answer, self._is_whole, self._is_head = answer, False, message.startswith(b"HEAD ")
        self.transport.write(message)
        return answer

    # ---- as the event loop calls it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:  # nobody has asked
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            self.transport.abort()
            answer.fail(f"did not send valid HTTP ({exc.__context__ or exc})")
            return
        if not self._is_whole:
            answer.heard()
        else:
            answer.end()
            if self._is_kept and not self.transport.is_closing():
                self._client.keep(self)
            else:
                self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._client.forget(self)
        if self.answer is not None:
            self.answer.fail("closed the connection")

    # ---- as the parser calls it

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise ValueError("more than one answer")
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.answer is not None and status >= 200:
            self.answer.begin(status, self._headers)
            # vLLM closes the connection after a failure of its own (5xx), silently.
            self._is_kept = self._parser.should_keep_alive() and status < 500
            if self._is_head:  # no body follows, but the parser would wait for the one that the headers describe
                self._is_whole, self._is_kept = True, False
        self._headers = []  # what follows the body are no headers

    def on_body(self, piece: bytes) -> None:
        if self.answer is not None:
            self.answer.add(piece)

    def on_message_complete(self) -> None:
        self._is_whole = self.answer is not None and self.answer.status != 0


def _message(method: str, path: str, body: bytes | None, headers: HeaderPairs) -> bytes:
    """
    Raises:
        ValueError: something has a line break in it, and would be another header.
    """
    fields = {"host": "engine", "content-type": "application/json", **{name.lower(): value for name, value in headers}}
    if body is not None:
        fields["content-length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    head = "\n".join(lines)
    if head.count("\n") >= len(lines) or "\r" in head or "\0" in head:
        raise ValueError(f"the request to {path!r:.200} has a line break in its head")
    return head.replace("\n", "\r\n").encode("latin-1") + (body or b"")
