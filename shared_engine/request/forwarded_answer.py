"""The answer to a forwarded request: its bytes as they come, the lease that it holds, and whether it is whole."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from functools import partial

from shared_engine.errors import RequestError
from shared_engine.request.client import Answer, split_events
from shared_engine.request.endpoint import Connection, Route
from shared_engine.request.observed import Observed
from shared_engine.request.streams import ChunkReader

# Of one hop each; and what aiohttp, which unpacks the body, would make untrue.
NOT_FORWARDED = frozenset(
    ("host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding", "content-encoding")
)
_LAST_EVENT = b"[DONE]"


class ForwardedAnswer:
    """An answer, with its headers; iterated once, its body, in one piece or as it comes.

    Attributes:
        whole: the body; None where it comes in pieces.
        sent_at: when its request was sent, by ``time.monotonic``.
    """

    _holds_lease = False

    def __init__(
        self,
        route: Route,
        connection: Connection,
        response: Answer,
        reader: ChunkReader | None,
        silence_s: float | None,
        observed: Observed,
        sent_at: float,
    ) -> None:
        self.sent_at = sent_at
        self._observed = observed
        self._error: BaseException | None = None
        self.status = response.status
        self.headers = [(name, value) for name, value in response.headers.items() if name.lower() not in NOT_FORWARDED]
        self.whole: bytes | None = None
        self._route = route
        self._connection = connection
        self._response = response
        self._reader = reader
        self._silence_s = silence_s
        self._buffer = bytearray()
        self._first = b""
        self._end = b""
        self._is_done = False
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._began = time.monotonic()

    async def begin(self) -> None:
        """Read all of an answer in one piece, and the beginning of one in pieces."""
        if is_in_pieces(self._response):
            self._first = await self._read()
        else:
            with self._connection.client.our_errors(self._silence_s, self._began, has_begun=True):
                self._first = self.whole = await self._response.read()

    def hold(self, refusal: RequestError | None) -> None:
        """From now on the lease is this object's to give back.

        Args:
            refusal: what an answer of status 400 or above says, which has come whole.
        """
        self._holds_lease = True
        self._error = refusal

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The same as iterating, which is the better way on a loop that ends: see ``Requests.stream``."""
        try:
            async for piece in self:
                yield piece
        finally:
            self.close()

    def __aiter__(self) -> ForwardedAnswer:
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body. Its end gives the lease back, as closing this does, which aborts the request.

        Raises:
            VLLMError: the answer was cut off.
        """
        try:
            piece, self._first = self._first, b""
            piece = piece or await self._next()
        except BaseException as exc:
            self._error = exc
            self.close()
            raise
        if piece:
            return piece
        self._is_done = True
        self.close()
        raise StopAsyncIteration

    async def _next(self) -> bytes:
        if self.whole is not None:
            return b""
        try:
            return await self._read()
        except RequestError as exc:
            explained = await self._route.explain(exc, self._connection)
            if explained is exc:
                raise
            raise explained from exc

    async def _read(self) -> bytes:
        """The next piece; none at the end.

        Raises:
            RequestError: the answer is cut off.
        """
        client = self._connection.client
        with client.our_errors(self._silence_s, self._began, has_begun=True):
            piece: bytes = await self._response.content.readany()
        if self._reader is None:
            self._end = (self._end + piece)[-len(_LAST_EVENT) - 4 :]  # and the ends of its lines
            self._is_done = self._end.rstrip().endswith(_LAST_EVENT)
        else:
            self._buffer += piece
            for event in split_events(self._buffer):
                self._see(self._reader, event)
            if not piece:
                for chunk in self._reader.end(client.where, is_done=self._is_done, needs_done=True):
                    self._observed.saw(chunk)
        return piece

    def _see(self, reader: ChunkReader, event: bytes) -> None:
        if event == _LAST_EVENT:
            self._is_done = True
        else:
            for chunk in reader.chunks(event):
                self._observed.saw(chunk)

    def close(self) -> None:
        """Give the lease back, and end the request if it still runs; from any thread, and any number of times."""
        self._close(is_on_loop=_running_loop() is self._loop)

    def _close(self, *, is_on_loop: bool) -> None:
        holds_lease, self._holds_lease = self._holds_lease, False
        if not holds_lease or self._process != os.getpid():  # else it is the parent's
            return
        self._observed.end(self._outcome())
        let_go = partial(_let_go, self._response, self._route, self._connection)
        if is_on_loop:
            let_go()
            return
        try:
            self._loop.call_soon_threadsafe(let_go)
        except RuntimeError:  # which is closed, and its connections with it
            self._route.release(self._connection)

    def _outcome(self) -> BaseException | None:
        """What the request ended with; clients leave a stream after ``[DONE]``, and need no more."""
        if self._error is not None or self.whole is not None or self._is_done:
            return self._error
        return GeneratorExit()

    async def aclose(self) -> None:
        """As ``close``, on the answer's own loop: when this returns, it is done."""
        self.close()

    def __del__(self) -> None:
        """Dropped without having been read. Let go later: the garbage collector may call this in a thread that holds
        the lock of a lease or a fleet just now, the loop's own as well.
        """
        if self._holds_lease:
            self._close(is_on_loop=False)


def _let_go(response: Answer, route: Route, connection: Connection) -> None:
    response.close()
    route.release(connection)


def is_in_pieces(response: Answer) -> bool:
    """False for JSON: that is read whole, so that a failure in the middle can still be retried."""
    return response.status < 400 and "json" not in response.content_type


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
