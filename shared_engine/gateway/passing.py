"""One request on its way to a model and back: it waits, is answered, and ends when its client leaves.

The answer goes to the client byte for byte, or through a ``Translation``, where the client speaks another protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

import msgspec
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send

from shared_engine.errors import VLLMError
from shared_engine.gateway.catalog import ServedModel
from shared_engine.gateway.config_fields import FileFields
from shared_engine.gateway.exchange import END_AT_DEPARTURE
from shared_engine.gateway.fetching import inlined
from shared_engine.gateway.in_flight import CANCELLED, InFlightRequest
from shared_engine.gateway.refusals import SHUT_DOWN, RefusedError, error_event, refusal_of
from shared_engine.gateway.translation import Translation
from shared_engine.gateway.whole_events import WholeEvents
from shared_engine.request.client import refusal
from shared_engine.request.forwarded_answer import ForwardedAnswer
from shared_engine.request.forwarding import ForwardedRequest
from shared_engine.request.refusals import error_from_response

BUSY_AGAIN_S = 1
LAST_WORDS_S = 1.0
_OF_THIS_HOP = frozenset((
    "date", "server", "set-cookie", "content-length", "www-authenticate",
    # What a browser would take for rules of this gateway's own.
    "access-control-allow-credentials", "access-control-allow-headers", "access-control-allow-methods",
    "access-control-allow-origin", "access-control-expose-headers", "alt-svc", "clear-site-data",
    "content-security-policy", "nel", "refresh", "report-to", "strict-transport-security", "x-content-type-options",
))  # fmt: skip
# A server's answer never is a page of this gateway's, which could read its keys.
_NO_PAGE = ((b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"default-src 'none'; sandbox"))
_BUSY = (429, 503)
_EVENTS = "text/event-stream"
# nginx would hold a stream back otherwise.
_OF_STREAMS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
logger = logging.getLogger(__name__)


class PassedOn:
    """The answer of a model, as a response.

    Args:
        is_stream: the client expects a stream, so that it can be told to wait.
        comment_interval_s: seconds between two of these comments.
        translation: where the client does not speak the protocol of the model's server.
        keep_alive_s: how long the model is to stay after this; None for as long as it would.
    """

    def __init__(
        self,
        model: ServedModel,
        request: ForwardedRequest,
        *,
        is_stream: bool,
        comment_interval_s: float,
        translation: Translation | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        self._model = model
        self._request = request
        self._is_stream = is_stream
        self._interval_s = comment_interval_s
        self._translation = translation
        self._stream_type = _EVENTS if translation is None else translation.stream_type
        self._keep_alive_s = keep_alive_s
        given = next((value for name, value in request.headers if name == "x-request-id"), None)
        self._listed = InFlightRequest(model.config.id, request.route, is_stream=is_stream, given_id=given)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it. A client that leaves ends its request, not a load that has begun."""
        key, config = scope["state"]["key"], scope["state"]["config"]
        self._listed.key, self._listed.route = None if key is None else key.name, scope["path"]
        self._listed.answering = asyncio.current_task()
        client = _Client(send, scope["path"], self._stream_type)
        end_at_departure = scope.get("extensions", {}).get(END_AT_DEPARTURE)
        with self._model.listed(self._listed):
            try:
                if end_at_departure is not None:
                    end_at_departure()
                await self._answer(client, config.fields)
            except asyncio.CancelledError:
                with contextlib.suppress(TimeoutError):  # of a client that takes nothing
                    async with asyncio.timeout(LAST_WORDS_S):
                        await client.refuse(self._end())

    def _end(self) -> RefusedError:
        """What is said when it was cancelled; to a client that has left nothing is."""
        if not self._listed.is_cancelled:  # but by the server
            return SHUT_DOWN
        logger.info("%s %s: cancelled", self._model.config.id, self._request.route)
        return CANCELLED

    async def _answer(self, client: _Client, rules: FileFields) -> None:
        name, places = self._model.config.id, self._model.places
        comments = _Comments(client, self._comment(), self._interval_s) if self._is_stream else None
        try:
            await places.take(self._model.config.settings.timeout)
            try:
                # Not before: so many at once are held with what their URLs name, and no more.
                body = await inlined(self._request.body, rules)
                request = self._request if body is self._request.body else replace(self._request, body=body)
                answer = await self._model.answer(request, self._listed)
                try:
                    if comments is not None:
                        await comments.end()
                    await self._model.keep_alive(self._keep_alive_s)
                    if self._translation is None:
                        await _pass_on(answer, client, self._listed)
                    else:
                        await _translated(answer, client, self._translation, self._listed)
                finally:
                    answer.close()
            finally:
                places.give_back()
        except (RefusedError, VLLMError) as exc:
            if comments is not None:
                await comments.end()
            refused = exc if isinstance(exc, RefusedError) else refusal_of(exc, name)
            logger.info("%s %s: %d, %s", name, self._request.route, refused.status, refused.message)
            await client.refuse(refused)
        finally:
            if comments is not None:
                await comments.end()

    def _comment(self) -> bytes:
        if self._translation is not None:
            return self._translation.waiting
        return f": waiting for {self._model.config.id}\n\n".encode()


class _Comments:
    """Tells a client now and then that its stream is still to come, until ``end``."""

    def __init__(self, client: _Client, comment: bytes, interval_s: float) -> None:
        self._client = client
        self._comment = comment
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        # A timer, not a task: most streams begin before.
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while True:
            await self._client.send_stream(self._comment)
            await asyncio.sleep(self._interval_s)

    async def end(self) -> None:
        """Return when none is sent any more."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class _Client:
    """Who is answered. What has begun to be an answer can't become another one."""

    def __init__(self, send: Send, route: str, stream_type: str) -> None:
        self._send = send
        self._route = route
        self._stream_type = stream_type
        self._begun: str | None = None
        """The type of what was begun."""

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]], kind: str) -> None:
        if self._begun is None:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            self._begun = kind  # not before: whoever is cancelled while it waits to send has sent nothing

    @property
    def gets_stream(self) -> bool:
        return self._begun == self._stream_type

    async def send(self, body: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def send_stream(self, body: bytes) -> None:
        if body:
            await self.begin(200, [(b"content-type", self._stream_type.encode()), *_OF_STREAMS], self._stream_type)
            await self.send(body)

    async def send_event(self, body: bytes, *, is_error: bool) -> None:
        await self.send(error_event(body, self._route) if is_error else b"data: " + body + b"\n\n")

    async def send_json(self, body: bytes) -> None:
        length = str(len(body)).encode()
        await self.begin(200, [(b"content-type", b"application/json"), (b"content-length", length)], "application/json")
        await self.send(body)

    async def end(self) -> None:
        await self.send(b"", is_last=True)

    async def refuse(self, refusal: RefusedError) -> None:
        if self._begun is None:
            response = refusal.response(self._route)
            await self.begin(refusal.status, response.raw_headers, "application/json")
            await self.send(bytes(response.body))
        elif self.gets_stream:
            await self.send(refusal.event(self._route))
        else:
            return  # without an end, so that nobody takes it for whole
        await self.end()


def _check_key(answer: ForwardedAnswer) -> None:
    if answer.status == 401:  # about the gateway's key there, not about the client's here
        raise RefusedError(502, "the model's server wants another api_key", "server_refuses_key")


async def _translated(
    answer: ForwardedAnswer, client: _Client, translation: Translation, listed: InFlightRequest
) -> None:
    _check_key(answer)
    if answer.status >= 400:
        error = refusal(answer.status, CIMultiDict(answer.headers), answer.whole or b"")
        if error.retry_after_s is None and answer.status in _BUSY:
            error.retry_after_s = BUSY_AGAIN_S
        raise error
    translation.begin(answer)
    if answer.whole is None:
        async for piece in answer:
            listed.saw(piece)
            await client.send_stream(translation.piece(piece))
        await client.send_stream(translation.end())
    else:
        send = client.send_stream if listed.is_stream else client.send_json
        await send(translation.whole(answer.whole))
    await client.end()


def _in_one_line(status: int, body: bytes) -> bytes:
    """As an event has it.

    Raises:
        RequestError: it is not JSON, but an error of what stands before the server.
    """
    try:
        return msgspec.json.format(body, indent=-1)
    except msgspec.MsgspecError:
        raise error_from_response(status, body) from None


async def _pass_on(answer: ForwardedAnswer, client: _Client, listed: InFlightRequest) -> None:
    _check_key(answer)
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in answer.headers
        if name.lower() not in _OF_THIS_HOP
    ]
    headers += _NO_PAGE
    kind = next((value for name, value in headers if name == b"content-type"), b"").partition(b";")[0].decode()
    if answer.status in _BUSY and not any(name == b"retry-after" for name, _ in headers):
        headers.append((b"retry-after", str(BUSY_AGAIN_S).encode()))
    if answer.whole is not None:
        headers.append((b"content-length", str(len(answer.whole)).encode()))
        if client.gets_stream:  # comments have gone before
            await client.send_event(_in_one_line(answer.status, answer.whole), is_error=answer.status >= 400)
        else:
            await client.begin(answer.status, headers, kind)
            await client.send(answer.whole, is_last=True)
            return
    else:
        if kind == _EVENTS:
            names = {name for name, _ in _OF_STREAMS}
            headers = [pair for pair in headers if pair[0] not in names] + list(_OF_STREAMS)
        await client.begin(answer.status, headers, kind)
        await _in_pieces(answer, client, listed, WholeEvents() if kind == _EVENTS else None)
    await client.end()


async def _in_pieces(
    answer: ForwardedAnswer, client: _Client, listed: InFlightRequest, events: WholeEvents | None
) -> None:
    """What is left of an event when this fails, or is cancelled, is not sent."""
    async for piece in answer:
        listed.saw(piece)
        if events is None:
            await client.send(piece)
        elif ended := events.ended(piece):
            await client.send(ended)
    if events is not None and (rest := events.rest()):
        await client.send(rest)
