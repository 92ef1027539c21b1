"""The HTTP request of another library's client, forwarded as it is: leased, and tried again where that is safe.

An answer of any status is that client's to read. Raised is only what is no answer: the engine did not start, died, was
stopped, could not be reached, or took too long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from shared_engine.errors import EngineBusyError, RequestError, RequestTimeoutError, ServerConnectionError, VLLMError
from shared_engine.request.answers import parse_result
from shared_engine.request.client import Answer, split_events
from shared_engine.request.endpoint import AnotherModelError, Connection, Endpoint, Route
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.observed import Observed
from shared_engine.request.patience import Patience, is_working
from shared_engine.request.refusals import error_from_response
from shared_engine.request.retry import Retry, is_retryable
from shared_engine.request.routes import CHAT, COMPLETIONS
from shared_engine.request.sending import say_waiting
from shared_engine.request.streams import ChunkReader
from shared_engine.results import GenerationResult
from shared_engine.settings import EngineSettings

T = TypeVar("T")

ANY_MODEL = "default"
"""What a client may call the engine's model, whatever its name."""

# Of one hop each; and what aiohttp, which unpacks the body, would make untrue.
_NOT_FORWARDED = frozenset(
    ("host", "connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding", "content-encoding")
)
SESSION_HEADER = "x-session-id"
"""As other routers name it."""
_TEXT_ROUTES = (CHAT, COMPLETIONS)
_LAST_EVENT = b"[DONE]"


@dataclass(frozen=True)
class ForwardedRequest:
    """One request, with whatever its client has put into it.

    Attributes:
        path: from the server's root, with the query.
        wait_s: how long the engine may take to be ready; None for as long as the settings say.
        silence_s: how long the server may send nothing; None for as long as the settings say, and for an answer in one
            piece as long as the server works on it.
    """

    method: str
    path: str
    headers: HeaderPairs = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    wait_s: float | None = None
    silence_s: float | None = None

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]

    @property
    def session(self) -> str | None:
        return next((value for name, value in self.headers if name.lower() == SESSION_HEADER), None)


class Forwarding:
    """Forwards to one engine."""

    def __init__(self, endpoint: Endpoint, settings: EngineSettings) -> None:
        self._endpoint = endpoint
        self._timeout = settings.timeout
        self._max_retries = settings.max_retries
        model = settings.model
        own = () if model is None or settings.is_remote else (model, Path(model).name)
        self._names = {ANY_MODEL, *own}

    async def forward(self, request: ForwardedRequest) -> ForwardedAnswer:
        """The server's answer. It holds the lease until it was read to its end, or is closed.

        The first piece of a stream is awaited: until then the request can be sent again without anybody's knowing.

        Raises:
            VLLMError: there is no answer.
        """
        observed = Observed(self._endpoint, request.route, request.body)
        try:
            return await self._forward(request, observed)
        except BaseException as exc:
            observed.end(exc)
            raise

    async def _forward(self, request: ForwardedRequest, observed: Observed) -> ForwardedAnswer:
        retry = Retry(self._max_retries, self._timeout)
        route = self._endpoint.for_request(request.route, request.body, request.session)
        while True:
            try:
                acquired = await self._acquired(request, route)
                try:
                    return await self._answer(request, acquired, observed, route)
                except BaseException:
                    route.release(acquired)
                    raise
            except VLLMError as exc:
                wait_s = retry.wait_s(exc, can_move=route.can_move())
                if wait_s is None:
                    route.sum_up(exc)
                    raise
                observed.tried_again(exc)
                say_waiting(exc, wait_s)
            await asyncio.sleep(wait_s)

    async def _acquired(self, request: ForwardedRequest, route: Route) -> Connection:
        try:
            async with asyncio.timeout(request.wait_s) as limit:
                return await route.acquire()
        except TimeoutError as exc:
            if not limit.expired():
                raise
            message = f"waited {request.wait_s:g} s for {route.awaited}"
            raise RequestTimeoutError(message) from exc

    async def _answer(
        self, request: ForwardedRequest, acquired: Connection, observed: Observed, route: Route
    ) -> ForwardedAnswer:
        """
        Raises:
            VLLMError: there is none, and what that means.
        """
        answer, refusal = None, None
        try:
            answer = await self._sent(request, acquired, observed, route)
            observed.answered(self._checked(request, answer))
            route.answered(acquired)
        except RequestError as exc:
            explained = await route.explain(exc, acquired)
            if answer is None or _is_no_answer(explained) or (route.can_move() and is_retryable(explained)):
                if explained is exc:
                    raise
                raise explained from exc
            refusal = exc
        answer.hold(refusal)
        return answer

    async def _serving(self, request: ForwardedRequest, connection: Connection) -> Connection:
        """The connection, to the adapter that the request names as its model, if it does."""
        adapters = self._endpoint.adapters
        fields = _fields(request) if adapters else {}
        named = next((name for name in adapters if _is(fields, "model", name)), None)
        return connection if named is None else await self._endpoint.serving(named, connection)

    async def _sent(
        self, request: ForwardedRequest, acquired: Connection, observed: Observed, route: Route
    ) -> ForwardedAnswer:
        connection = await self._serving(request, observed.connected(acquired))
        body, is_stream = self._body(request, connection.model, connection.name)
        headers = tuple(pair for pair in request.headers if pair[0].lower() not in _NOT_FORWARDED)
        client, began = connection.client, time.monotonic()
        silence_s = request.silence_s or (self._timeout if is_stream else None)

        async def begun() -> ForwardedAnswer:
            with client.our_errors(silence_s, began):
                response = await client.send(request.method, request.path, body, silence_s, headers)
            try:
                if 300 <= response.status < 400:
                    raise client.redirect(response)
                reader = self._reader(request, response)
                answer = ForwardedAnswer(route, connection, response, reader, silence_s, observed)
                await answer.begin()
            except BaseException:
                response.close()
                raise
            return answer

        return await (begun() if silence_s else self._patiently(connection, begun))

    def _reader(self, request: ForwardedRequest, response: Answer) -> ChunkReader | None:
        """What sees whether a stream of an engine of ours is whole."""
        is_judged = self._endpoint.sends_done and request.route in _TEXT_ROUTES and response.status == 200
        return ChunkReader() if is_judged and _is_stream(response) else None

    async def _patiently(self, connection: Connection, call: Callable[[], Awaitable[T]]) -> T:
        if self._timeout is None:
            return await call()
        try:
            async with Patience(self._timeout, partial(is_working, connection.client, self._timeout)):
                return await call()
        except TimeoutError as exc:
            if isinstance(exc, VLLMError):
                raise
            raise connection.client.silent(self._timeout) from exc

    def _checked(self, request: ForwardedRequest, answer: ForwardedAnswer) -> GenerationResult | None:
        """What an answer has that has come whole; None of other routes.

        Raises:
            RequestError: it is the server's failure, or was cut off.
        """
        if answer.whole is None:
            return None
        if answer.status >= 400:
            raise error_from_response(answer.status, answer.whole)
        if self._endpoint.sends_done and request.route in _TEXT_ROUTES:
            return parse_result(answer.whole)
        return None

    def _body(self, request: ForwardedRequest, model: str, adapter: str | None = None) -> tuple[bytes, bool]:
        """The bytes to send, with the engine's own name for its model, or for the adapter that the request names; and
        whether a stream is asked for.
        """
        fields = _fields(request)
        is_stream = _is(fields, "stream", True)
        if any(_is(fields, "model", name) for name in (*self._names, adapter)):
            fields["model"] = msgspec.Raw(msgspec.json.encode(model))
            return msgspec.json.encode(fields), is_stream
        return request.body, is_stream


class ForwardedAnswer:
    """An answer, with its headers; iterated once, its body, in one piece or as it comes.

    Attributes:
        whole: the body; None where it comes in pieces.
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
    ) -> None:
        self._observed = observed
        self._error: BaseException | None = None
        self.status = response.status
        self.headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _NOT_FORWARDED]
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
        if _is_stream(self._response):
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
        holds_lease, self._holds_lease = self._holds_lease, False
        if not holds_lease or self._process != os.getpid():  # else it is the parent's
            return
        self._observed.end(self._outcome())
        let_go = partial(_let_go, self._response, self._route, self._connection)
        if _running_loop() is self._loop:
            let_go()
            return
        try:
            # On its loop: the garbage collector may call this in a thread that is just about to take a lease.
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

    __del__ = close  # dropped without having been read


def _let_go(response: Answer, route: Route, connection: Connection) -> None:
    response.close()
    route.release(connection)


def _is_stream(response: Answer) -> bool:
    """False for JSON: that is read whole, so that a failure in the middle can still be retried."""
    return response.status < 400 and "json" not in response.content_type


def _is_no_answer(error: VLLMError) -> bool:
    """True where the server's words are not the client's to read: they would not say what happened."""
    if isinstance(error, RequestError):
        return isinstance(error, ServerConnectionError | AnotherModelError)
    return not isinstance(error, EngineBusyError)


def _fields(request: ForwardedRequest) -> dict[str, msgspec.Raw]:
    """Of the body; none where it is a file, or the server will say what it is."""
    try:
        return msgspec.json.decode(request.body, type=dict[str, msgspec.Raw]) if request.body else {}
    except msgspec.DecodeError:
        return {}


def _is(fields: Mapping[str, msgspec.Raw], name: str, value: Any) -> bool:
    return name in fields and bool(msgspec.json.decode(fields[name]) == value)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
