"""One request to an Endpoint: lease, send, read, explain what failed, and try again where that is safe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import NoReturn, TypeVar

import msgspec

from shared_engine.conversations.traits import Trait
from shared_engine.errors import (
    ContextLengthError,
    InvalidInputError,
    ModelNotFoundError,
    RequestError,
    RequestRejectedError,
    VLLMError,
)
from shared_engine.params import CallParams, GenerationParams
from shared_engine.request import answers
from shared_engine.request.bodies import (
    Request,
    asked_tokens,
    own_max_tokens,
    prompt_tokens_request,
    with_max_tokens,
    without_traits,
)
from shared_engine.request.call import Call
from shared_engine.request.client import Client, EventStream
from shared_engine.request.endpoint import PROBE_TIMEOUT_S, Connection, Endpoint, Route
from shared_engine.request.lengths import in_words, leaves_no_input, room_left
from shared_engine.request.observed import Observed
from shared_engine.request.patience import Patience, is_working
from shared_engine.request.refusals import explain_missing_route
from shared_engine.request.refused_traits import next_step, refused_before, remember, sent_in_form
from shared_engine.request.retry import Retry
from shared_engine.request.routes import CHAT, COMPLETIONS, METRICS, MODELS
from shared_engine.request.streams import ChunkReader
from shared_engine.results import GenerationChunk, GenerationResult

T = TypeVar("T")
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)

TOLD_FROM_S = 1.0


def say_waiting(error: VLLMError, wait_s: float) -> None:
    """In the log, where a caller would wonder what is going on."""
    if wait_s >= TOLD_FROM_S:
        logger.info("tried again in %.0f s: %s", wait_s, error)


def _as_named(answer: Answer, connection: Connection) -> Answer:
    """The answer, with the adapter's name as the caller has it."""
    if connection.name is None or not isinstance(answer, msgspec.Struct):
        return answer
    is_its = getattr(answer, "model", "") == connection.model
    return msgspec.structs.replace(answer, model=connection.name) if is_its else answer


MAX_COUNTED_BYTES = 1 << 16
"""Of a text whose tokens the server is asked for only to make an error say more: some 15 ms of its time. It answers
nobody else meanwhile, and takes 10 s for 4 MB."""


MAX_KNOWN_LENGTHS = 1000

_Served = tuple[int, str]


def _served(request: Request, connection: Connection) -> _Served:
    """The model or adapter that is to answer, of this start of the server."""
    model = msgspec.json.decode(request.body)["model"] if request.names_model else connection.model
    return connection.incarnation, model


class Requests:
    """The requests of one Engine.

    Args:
        timeout: seconds a request may go without receiving a byte; None for no limit.
        max_retries: how often a request is tried again, unless its call says otherwise.
        fit: makes of each request for an answer the one to send, or refuses it; nothing of it has been sent by then.
        reshapes: a conversation that the server's chat template refuses is sent in a form that it takes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float | None,
        max_retries: int,
        fit: Callable[[Request], Awaitable[Request]] | None = None,
        *,
        reshapes: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._fit = fit
        self._reshapes = reshapes
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_model_len: dict[_Served, int] = {}
        self._is_counting = False
        self._counts_before: set[_Served] = set()

    async def generate(self, request: Request) -> GenerationResult:
        """A whole answer."""
        return await self.ask(request, partial(answers.parse_result, keeps_raw=_keeps_raw(request)))

    async def ask(self, request: Request, parse: Callable[[bytes], T], call: Call | None = None) -> T:
        """What ``parse`` makes of the answer's body.

        Args:
            call: that this request is one of; without, it is one of its own.
        """
        call = call or Call.begin(request.params)
        route = self.endpoint.for_request(request.path, request.body, call.session, request.model)
        with Observed(self.endpoint, request.path, request.body) as observed:
            request = await self._fitted(request, call)

            async def posted(request: Request, connection: Connection) -> T:
                return parse(await self._post(request, connection))

            async def post(acquired: Connection) -> T:
                connection = observed.connected(acquired)
                try:
                    connection = await self._serving(request, connection)
                    result = _as_named(await self._in_form(request, connection, posted), connection)
                except RequestError as exc:
                    await self._raise(exc, connection, route, request)
                route.answered(acquired)
                return result

            result = await self._with_connection(post, call, route, observed.tried_again)
            observed.answered(result)
            return _marked(result, request)

    async def stream(self, request: Request) -> AsyncGenerator[GenerationChunk, None]:
        """An answer in pieces. Closing this ends the request, and gives its lease back, before it returns.

        It is the only asynchronous generator of a stream. With one inside another, a loop that shuts down would close
        both at once, and the garbage collector would end the inner one after the lease.
        """
        call = Call.begin(request.params)
        retry, deadline = self._retry(call), call.deadline
        route = self.endpoint.for_request(request.path, request.body, call.session, request.model)
        with Observed(self.endpoint, request.path, request.body, is_streamed=True) as observed:
            request = await self._fitted(request, call)
            learned: tuple[Trait, RequestError] | None = None
            while True:
                try:
                    acquired = await deadline.wait(route.awaited, route.acquire(call.headers))
                    events = None
                    try:
                        connection = observed.connected(acquired)
                        where = connection.client.where
                        connection = await deadline.wait(f"an answer from {where}", self._serving(request, connection))
                        opening = self._in_form(request, connection, self._opened)
                        events = await deadline.wait(f"an answer from {where}", opening)
                        route.answered(acquired)
                        reader = ChunkReader(keeps_raw=_keeps_raw(request))
                        async for event in deadline.over(f"more of the answer from {where}", events):
                            for chunk in reader.chunks(event):
                                observed.saw(chunk)
                                if learned is not None:
                                    remember(connection, *learned)
                                    learned = None
                                yield _marked(_as_named(chunk, connection), request)
                        for chunk in reader.end(where, is_done=events.is_done, needs_done=route.sends_done):
                            observed.saw(chunk)
                            yield _as_named(chunk, connection)
                        return
                    except RequestError as exc:
                        if deadline.is_over:
                            raise
                        is_new = events is not None and not observed.has_reached_caller
                        refused = self._refused(request, connection, exc) if is_new else None
                        if refused is not None:
                            learned = (request.traits & refused, exc)
                            request = without_traits(request, refused | refused_before(connection))
                            continue
                        await self._raise(exc, connection, route, request)
                    finally:
                        if events is not None:
                            events.close()  # not before: what the server does with the request is part of an error
                        route.release(acquired)
                except VLLMError as exc:
                    has_reached_caller = observed.has_reached_caller
                    wait_s = (
                        None if has_reached_caller else retry.wait_s(exc, deadline.left_s, can_move=route.can_move())
                    )
                    if wait_s is None:
                        route.sum_up(exc)
                        raise
                    observed.tried_again(exc)
                    say_waiting(exc, wait_s)
                await asyncio.sleep(wait_s)

    async def _fitted(self, request: Request, call: Call) -> Request:
        if self._fit is None or request.path not in (CHAT, COMPLETIONS):
            return request
        return await call.deadline.wait("its tokens to be counted", self._fit(request))

    async def _serving(self, request: Request, connection: Connection) -> Connection:
        """The connection, to the adapter or model that the request names."""
        return connection if request.model is None else await self.endpoint.serving(request.model, connection)

    async def _in_form(
        self, request: Request, connection: Connection, send: Callable[[Request, Connection], Awaitable[T]]
    ) -> T:
        """What ``send`` gives; see ``sent_in_form`` and ``_in_room``."""
        if request.needs_max_tokens:
            return await self._in_room(request, connection, send)
        if not request.traits or not self._reshapes:
            return await send(request, connection)
        return await sent_in_form(request, connection, send)

    async def _in_room(
        self, request: Request, connection: Connection, send: Callable[[Request, Connection], Awaitable[T]]
    ) -> T:
        """What ``send`` gives. A server of vLLM before 0.32 refuses to have all of its limit for an answer, which later
        ones cut to what the prompt leaves: there the prompt is counted before.
        """
        if _served(request, connection) in self._counts_before:
            return await send(await self._sized(request, connection) or request, connection)
        try:
            return await send(request, connection)
        except RequestRejectedError as exc:
            sized = await self._sized(request, connection) if leaves_no_input(exc) else None
            if sized is None:
                raise
            if len(self._counts_before) >= MAX_KNOWN_LENGTHS:
                self._counts_before.clear()
            self._counts_before.add(_served(request, connection))
            logger.debug("%s does not cut max_tokens: %s", connection.client.where, exc)
        return await send(sized, connection)

    async def _sized(self, request: Request, connection: Connection) -> Request | None:
        """The request with what its prompt leaves of the limit; None where nobody counts.

        Raises:
            ContextLengthError: it leaves nothing.
        """
        limit = await self._server_limit(request, connection)
        tokenize = prompt_tokens_request(request)
        assert tokenize is not None
        try:
            count = answers.parse_token_count(await self._post(tokenize, connection))
        except RequestError:
            return None
        kept = msgspec.json.decode(request.body).get("truncate_prompt_tokens")
        if isinstance(kept, int):
            count = min(count, limit - 1 if kept < 0 else kept)
        if count >= limit:
            raise ContextLengthError("it leaves nothing of that for an answer", 400, limit, count, 1)
        return with_max_tokens(request, limit - count)

    def _refused(self, request: Request, connection: Connection, refusal: RequestError) -> Trait | None:
        """What the server does not take of a conversation, as it said in an answer that had begun well; None where it
        said something else.
        """
        return next_step(request, refused_before(connection), refusal) if self._reshapes else None

    async def _opened(self, request: Request, connection: Connection) -> EventStream:
        """A stream whose answer has begun; to be closed."""
        events = connection.client.stream(request.path, await self._body(request, connection), self._timeout)
        try:
            await events.open()
        except BaseException:
            events.close()
            raise
        return events

    async def count_tokens(self, request: Request) -> int:
        """How many tokens a ``/tokenize`` request has."""
        return await self.ask(request, answers.parse_token_count)

    async def check_health(self) -> None:
        """Return when the server is ready."""

        async def check(connection: Connection) -> None:
            try:
                await self.endpoint.check_health(connection.client)
            except RequestError as exc:
                await self._raise(exc, connection, route)

        route = self.endpoint.for_request()
        await self._with_connection(check, Call.begin(CallParams()), route, lambda _: None)

    async def load_adapter(self, name: str, path: str) -> None:
        """Return when the server has loaded the adapter, and requests may name it."""
        await self.endpoint.check_adapter(name, path)

        async def load(connection: Connection) -> None:
            try:
                await self.endpoint.load_adapter(name, path, connection)
            except RequestError as exc:
                await self._raise(exc, connection, route)

        route = self.endpoint.for_request()
        await self._with_connection(load, Call.begin(CallParams()), route, lambda _: None)

    async def metrics(self) -> str:
        """See ``metrics_of``."""
        return await metrics_of(self.endpoint)

    async def _with_connection(
        self,
        ask: Callable[[Connection], Awaitable[T]],
        call: Call,
        route: Route,
        tried_again: Callable[[VLLMError], None],
    ) -> T:
        retry, deadline = self._retry(call), call.deadline
        while True:
            try:
                connection = await deadline.wait(route.awaited, route.acquire(call.headers))
                try:
                    return await deadline.wait(f"an answer from {connection.client.where}", ask(connection))
                finally:
                    route.release(connection)
            except VLLMError as exc:
                wait_s = retry.wait_s(exc, deadline.left_s, can_move=route.can_move())
                if wait_s is None:
                    route.sum_up(exc)
                    raise
                tried_again(exc)
                say_waiting(exc, wait_s)
            await asyncio.sleep(wait_s)

    def _retry(self, call: Call) -> Retry:
        return Retry(self._max_retries if call.max_retries is None else call.max_retries, self._timeout)

    async def _post(self, request: Request, connection: Connection) -> bytes:
        body = await self._body(request, connection)
        client = connection.client
        if self._timeout is None:
            return await client.request("POST", request.path, body)
        try:
            async with Patience(self._timeout, partial(is_working, client, self._timeout)):
                return await client.request("POST", request.path, body)
        except TimeoutError as exc:
            if isinstance(exc, VLLMError):
                raise
            raise client.silent(self._timeout) from exc

    async def _body(self, request: Request, connection: Connection) -> bytes:
        limit = await self._server_limit(request, connection) if request.needs_max_tokens else None
        return request.for_server(connection.model, limit)

    async def _server_limit(self, request: Request, connection: Connection) -> int:
        """The model's max_model_len, asked once for each start of the engine."""
        served = _served(request, connection)
        known = self._max_model_len.get(served)
        if known is not None:
            return known
        models = answers.parse_models(await connection.client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S))
        length = answers.window_of(models, served[1])
        if length is None:
            raise InvalidInputError("this server does not report its max_model_len: pass max_tokens")
        while len(self._max_model_len) >= MAX_KNOWN_LENGTHS:
            del self._max_model_len[next(iter(self._max_model_len))]
        self._max_model_len[served] = length
        self._learn_limit(request, length)
        return length

    def _learn_limit(self, request: Request, limit: int | None) -> None:
        """Of the endpoint's own model, which is that of its adapters too; another one may have another."""
        is_adapter = isinstance(request.params, GenerationParams) and request.params.lora is not None
        is_other = request.names_model or (request.model is not None and not is_adapter)
        if limit is not None and not is_other:
            self.endpoint.max_model_len = limit

    async def limits(self, params: CallParams) -> dict[str, int | None]:
        """The server's models, with the max_model_len of each where it reports that."""

        async def ask(connection: Connection) -> dict[str, int | None]:
            try:
                listed = await connection.client.request("GET", MODELS, timeout=PROBE_TIMEOUT_S)
            except RequestError as exc:
                await self._raise(exc, connection, route)
            return dict(answers.parse_models(listed))

        route = self.endpoint.for_request()
        return await self._with_connection(ask, Call.begin(params), route, lambda _: None)

    # ---- what a failure means; all steps are listed in refusals.py

    async def _raise(
        self, error: RequestError, connection: Connection, route: Route, request: Request | None = None
    ) -> NoReturn:
        """Raise what a failed request means; from the failure, where that is another error."""
        explained: VLLMError = error
        if request is not None:
            explained = explain_missing_route(error, request.path)
        if isinstance(error, ContextLengthError) and request is not None:
            explained = await self._with_length(error, connection, request)
        elif isinstance(error, RequestRejectedError) and request is not None and explained is error:
            explained = await self._with_room(error, connection, request)
        if explained is error:
            explained = await route.explain(error, connection)
        if explained is error:
            raise error
        raise explained from error

    async def _with_length(
        self, error: ContextLengthError, connection: Connection, request: Request
    ) -> ContextLengthError:
        """The error with the prompt's exact length, where that is known soon: vLLM stops one past the limit.

        One prompt is counted at a time: of a whole batch that is refused, the first ones have to do.
        """
        limit, count, is_exact = error.max_model_len, error.prompt_tokens, False
        self._learn_limit(request, limit)
        tokenize = prompt_tokens_request(request) if len(request.body) <= MAX_COUNTED_BYTES else None
        if tokenize is not None and not self._is_counting:
            self._is_counting = True
            try:
                count = answers.parse_token_count(await self._in_form(tokenize, connection, self._post))
                is_exact = True
            except RequestError:  # a server without that route: its own number has to do
                pass
            finally:
                self._is_counting = False
        if count is None or limit is None:
            return error
        asked = error.completion_tokens or asked_tokens(request)
        message = f"{in_words(limit, count, asked, is_exact=is_exact)}: {error.message}"
        return ContextLengthError(message, error.status, limit, count, asked)

    async def _with_room(
        self, error: RequestRejectedError, connection: Connection, request: Request
    ) -> RequestRejectedError:
        """The error of a prompt that leaves less of the limit than the answer has to have, about which vLLM says only
        what is left.
        """
        left = room_left(error.message)
        if left is None or request.path not in (CHAT, COMPLETIONS) or own_max_tokens(request) == left[0]:
            return error
        try:
            limit = await self._server_limit(request, connection)
        except (RequestError, InvalidInputError):
            return ContextLengthError(error.message, error.status)
        count, asked = limit - left[0], max(left[1], asked_tokens(request) or 1)
        message = f"{in_words(limit, count, asked, is_exact=True)}: {error.message}"
        return ContextLengthError(message, error.status, limit, count, asked)


def _keeps_raw(request: Request) -> bool:
    return isinstance(request.params, GenerationParams) and bool(request.params.keep_raw)


def _marked(answer: T, request: Request) -> T:
    """With what max_tokens was lowered to: a whole answer, and of a stream the chunk that has the finish reason."""
    if request.lowered_to is None or not isinstance(answer, GenerationResult | GenerationChunk):
        return answer
    if isinstance(answer, GenerationChunk) and answer.finish_reason is None:
        return answer
    return msgspec.structs.replace(answer, max_tokens_lowered_to=request.lowered_to)


async def metrics_of(endpoint: Endpoint) -> str:
    """vLLM's metrics as they come, read without a lease; empty if no server is up, or one that has none."""
    clients = await endpoint.observer_clients()
    if len(clients) == 1:
        return await _metrics_of(clients[0])
    asked = await asyncio.gather(*map(_metrics_of, clients), return_exceptions=True)
    return "\n".join(text for text in asked if isinstance(text, str))  # of a fleet's servers, those that are up


async def _metrics_of(client: Client) -> str:
    try:
        return (await client.request("GET", METRICS, timeout=PROBE_TIMEOUT_S)).decode(errors="replace")
    except ModelNotFoundError:
        return ""
