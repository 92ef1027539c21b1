"""The HTTP request of another library's client, forwarded as it is: leased, and tried again where that is safe.

An answer of any status is that client's to read. Raised is only what is no answer: the engine did not start, died, was
stopped, could not be reached, or took too long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from multidict import CIMultiDict

from shared_engine.errors import EngineBusyError, RequestError, RequestTimeoutError, ServerConnectionError, VLLMError
from shared_engine.request.answers import parse_result
from shared_engine.request.client import Answer, refusal
from shared_engine.request.endpoint import AnotherModelError, Connection, Endpoint, Route
from shared_engine.request.forwarded_answer import NOT_FORWARDED, ForwardedAnswer, is_in_pieces
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.observed import OPERATIONS, Observed
from shared_engine.request.patience import Patience, is_working
from shared_engine.request.reproducible import held_fields, seed_of
from shared_engine.request.retry import Retry, is_retryable
from shared_engine.request.routes import CHAT, COMPLETIONS
from shared_engine.request.sending import say_waiting
from shared_engine.request.streams import ChunkReader
from shared_engine.request.usage import Told, told_by_ends
from shared_engine.results import GenerationResult
from shared_engine.settings import EngineSettings

T = TypeVar("T")

ANY_MODEL = "default"
"""What a client may call the engine's model, whatever its name."""

SESSION_HEADER = "x-session-id"
"""As other routers name it."""
_TEXT_ROUTES = (CHAT, COMPLETIONS)


@dataclass(frozen=True)
class ForwardedRequest:
    """One request, with whatever its client has put into it.

    Attributes:
        path: from the server's root, with the query.
        fields: of the body; none where it is a file, or the server will say what it is.
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
    fields: Mapping[str, msgspec.Raw] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", _fields(self.body))

    @property
    def model(self) -> str | None:
        """That the body names."""
        with suppress(KeyError, msgspec.DecodeError):
            return msgspec.json.decode(self.fields["model"], type=str)
        return None

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
        self._held_seed = seed_of(settings) if settings.reproducible else None

    async def forward(
        self, request: ForwardedRequest, through: Callable[[Route], Route] | None = None
    ) -> ForwardedAnswer:
        """The server's answer. It holds the lease until it was read to its end, or is closed.

        The first piece of a stream is awaited: until then the request can be sent again without anybody's knowing.

        Args:
            through: makes another way of the request's own one.

        Raises:
            VLLMError: there is no answer.
        """
        observed = Observed(self._endpoint, request.route, request.body)
        try:
            return await self._forward(request, observed, through)
        except BaseException as exc:
            observed.end(exc)
            raise

    async def _forward(
        self, request: ForwardedRequest, observed: Observed, through: Callable[[Route], Route] | None
    ) -> ForwardedAnswer:
        retry = Retry(self._max_retries, self._timeout)
        model = None if request.model in self._names else request.model
        route = self._endpoint.for_request(request.route, request.body, request.session, model)
        route = route if through is None else through(route)
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
        if request.wait_s is None:
            return await route.acquire()
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
        named = request.model
        is_adapter = named is not None and named in self._endpoint.adapters
        return await self._endpoint.serving(named, connection) if named and is_adapter else connection

    async def _sent(
        self, request: ForwardedRequest, acquired: Connection, observed: Observed, route: Route
    ) -> ForwardedAnswer:
        connection = await self._serving(request, observed.connected(acquired))
        body, is_stream = self._body(request, connection.model, connection.name)
        headers = tuple(pair for pair in request.headers if pair[0].lower() not in NOT_FORWARDED)
        client, began = connection.client, time.monotonic()
        silence_s = request.silence_s or (self._timeout if is_stream else None)

        async def begun() -> ForwardedAnswer:
            with client.our_errors(silence_s, began):
                response = await client.send(request.method, request.path, body, silence_s, headers)
            try:
                if 300 <= response.status < 400:
                    raise client.redirect(response)
                reader = self._reader(request, response)
                answer = ForwardedAnswer(route, connection, response, reader, silence_s, observed, began)
                await answer.begin()
            except BaseException:
                response.close()
                raise
            return answer

        return await (begun() if silence_s else self._patiently(connection, begun))

    def _reader(self, request: ForwardedRequest, response: Answer) -> ChunkReader | None:
        """What sees whether a stream of an engine of ours is whole."""
        is_judged = self._endpoint.sends_done and request.route in _TEXT_ROUTES and response.status == 200
        return ChunkReader() if is_judged and is_in_pieces(response) else None

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

    def _checked(self, request: ForwardedRequest, answer: ForwardedAnswer) -> GenerationResult | Told | None:
        """What an answer has that has come whole: of a text of an engine of ours all of it, else what it cost.

        Raises:
            RequestError: it is the server's failure, or was cut off.
        """
        if answer.whole is None:
            return None
        if answer.status >= 400:
            raise refusal(answer.status, CIMultiDict(answer.headers), answer.whole)
        if self._endpoint.sends_done and request.route in _TEXT_ROUTES:
            return parse_result(answer.whole, keeps_additional=False)
        return told_by_ends(answer.whole) if request.route in OPERATIONS else None

    def _body(self, request: ForwardedRequest, model: str, adapter: str | None = None) -> tuple[bytes, bool]:
        """The bytes to send, with the engine's own name for its model, or for the adapter that the request names; and
        whether a stream is asked for.
        """
        fields = request.fields
        is_stream = bytes(fields.get("stream", b"")) == b"true"
        changes = held_fields(request.route, self._held_seed, fields)
        if request.model is not None and request.model in (*self._names, adapter):
            changes["model"] = model
        if not changes:
            return request.body, is_stream
        sent = {**fields, **{name: msgspec.Raw(msgspec.json.encode(value)) for name, value in changes.items()}}
        return msgspec.json.encode(sent), is_stream


def _is_no_answer(error: VLLMError) -> bool:
    """True where the server's words are not the client's to read: they would not say what happened."""
    if isinstance(error, RequestError):
        return isinstance(error, ServerConnectionError | AnotherModelError)
    return not isinstance(error, EngineBusyError)


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if body else {}
    except (msgspec.DecodeError, RecursionError):
        return {}
