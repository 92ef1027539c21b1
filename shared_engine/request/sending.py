"""One request to a Endpoint: lease, send, read, and try again where that is safe.

Safe means: nothing of an answer has reached the caller, and the failure can pass (see endpoint.is_retryable).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from msgspec.structs import replace

from shared_engine.errors import (
    ContextLengthError,
    EngineDiedError,
    InvalidInputError,
    RequestError,
    ServerConnectionError,
    VLLMError,
)
from shared_engine.request import wire
from shared_engine.request.endpoint import PROBE_TIMEOUT_S, Connection, Endpoint, is_retryable
from shared_engine.request.routes import explained_absence
from shared_engine.results import GenerationChunk, GenerationResult

T = TypeVar("T")
Item = TypeVar("Item")

Body = Callable[[Connection], Awaitable[dict[str, Any]]]
"""Makes a request's body once the server is known: its name for the model, and its limits, go into it."""

MAX_DEATHS = 1
MAX_RETRY_WAIT_S = 8.0


class Requests:
    """The requests of one Engine.

    Args:
        timeout: seconds a request may go without receiving a byte; None for no limit.
        max_retries: how often a request is tried again.
    """

    def __init__(self, endpoint: Endpoint, timeout: float | None, max_retries: int) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_model_len: tuple[int, int] | None = None

    async def generate(self, path: str, body: Body) -> GenerationResult:
        """A whole answer."""

        async def call(connection: Connection) -> GenerationResult:
            content = await body(connection)
            try:
                with explained_absence(path):
                    data = await connection.client.request("POST", path, wire.encode(content), self._timeout)
            except ContextLengthError as exc:
                raise await self._with_length(exc, connection, content) from exc
            result = wire.parse_result(data)
            if any(choice.finish_reason == "abort" for choice in result.choices):
                raise _aborted()
            return result

        return await self._with_connection(call)

    async def stream(self, path: str, body: Body) -> AsyncGenerator[GenerationChunk, None]:
        """An answer in pieces. Closing this aborts the request."""
        attempt = 0
        while True:
            reached_caller = False
            try:
                async with self.endpoint.connection() as connection:
                    try:
                        async for chunk in self._events(connection, path, await body(connection)):
                            reached_caller = True
                            yield chunk
                        return
                    except RequestError as exc:
                        await self._raise(exc, connection)
            except VLLMError as exc:
                if reached_caller or not self._may_retry(exc, attempt):
                    raise
            await asyncio.sleep(_retry_wait_s(attempt))
            attempt += 1

    async def ask(self, path: str, body: Mapping[str, Any], parse: Callable[[bytes], T]) -> T:
        """An answer that is not generated. The server's name for the model is added to the body."""
        wire.encode(body)  # what can't be sent is refused before anything starts

        async def call(connection: Connection) -> T:
            content = wire.encode({"model": connection.model, **body})
            with explained_absence(path):
                return parse(await connection.client.request("POST", path, content, self._timeout))

        return await self._with_connection(call)

    async def count_tokens(self, part: Mapping[str, Any]) -> int:
        """Tokens of a ``tokens.tokenize_part``."""

        async def call(connection: Connection) -> int:
            return await self._count(connection, part)

        return await self._with_connection(call)

    async def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, without special ones around them."""

        async def call(connection: Connection) -> list[int]:
            body = wire.encode({"model": connection.model, "prompt": text, "add_special_tokens": False})
            return wire.parse_tokens(await connection.client.request("POST", "/tokenize", body, self._timeout))

        return await self._with_connection(call)

    async def check_health(self) -> None:
        async def call(connection: Connection) -> None:
            await connection.client.request("GET", "/health", timeout=PROBE_TIMEOUT_S)

        await self._with_connection(call)

    async def metrics(self) -> dict[str, float]:
        """Of a server that is up, without a lease; empty if none is."""
        client = await self.endpoint.observer_client()
        if client is None:
            return {}
        return wire.parse_metrics((await client.request("GET", "/metrics", timeout=PROBE_TIMEOUT_S)).decode())

    async def max_model_len(self, connection: Connection) -> int:
        """The server's limit, asked once for each start of the engine."""
        if self._max_model_len is None or self._max_model_len[0] != connection.generation:
            models = wire.parse_models(await connection.client.request("GET", "/v1/models", timeout=PROBE_TIMEOUT_S))
            lengths = dict(models)
            length = lengths.get(connection.model) or next((value for value in lengths.values() if value), None)
            if length is None:
                raise InvalidInputError("this server does not tell its max_model_len: pass max_tokens")
            self._max_model_len = (connection.generation, length)
            self.endpoint.max_model_len = length
        return self._max_model_len[1]

    async def _with_connection(self, call: Callable[[Connection], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                async with self.endpoint.connection() as connection:
                    try:
                        return await call(connection)
                    except RequestError as exc:
                        await self._raise(exc, connection)
            except VLLMError as exc:
                if not self._may_retry(exc, attempt):
                    raise
            await asyncio.sleep(_retry_wait_s(attempt))
            attempt += 1

    async def _raise(self, error: RequestError, connection: Connection) -> NoReturn:
        """Raise what a failed request means; from the failure, where that is another error."""
        explained = await self.endpoint.explain(error, connection)
        if explained is error:
            raise error
        raise explained from error

    def _may_retry(self, error: VLLMError, attempt: int) -> bool:
        # A request that kills the engine must not do so again and again.
        limit = min(MAX_DEATHS, self._max_retries) if isinstance(error, EngineDiedError) else self._max_retries
        return is_retryable(error) and attempt < limit

    async def _events(
        self, connection: Connection, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[GenerationChunk, None]:
        has_reasoning = False
        try:
            with explained_absence(path):
                async for event in connection.client.stream(path, wire.encode(body), self._timeout):
                    for chunk in wire.parse_event(event):
                        if chunk.finish_reason == "abort":
                            raise _aborted()
                        has_reasoning = has_reasoning or bool(chunk.reasoning)
                        if chunk.usage is not None and has_reasoning:
                            chunk = replace(chunk, usage=wire.without_false_zero(chunk.usage))
                        if not chunk.is_empty:
                            yield chunk
        except ContextLengthError as exc:
            raise await self._with_length(exc, connection, body) from exc

    async def _count(self, connection: Connection, part: Mapping[str, Any]) -> int:
        body = wire.encode({"model": connection.model, **part})
        return wire.parse_token_count(await connection.client.request("POST", "/tokenize", body, self._timeout))

    async def _with_length(
        self, error: ContextLengthError, connection: Connection, body: dict[str, Any]
    ) -> ContextLengthError:
        """The error with the prompt's exact length: vLLM stops counting one token past the limit."""
        self.endpoint.max_model_len = error.max_model_len or self.endpoint.max_model_len
        names = ("messages", "tools", "chat_template_kwargs", "prompt")
        part: dict[str, Any] = {name: body[name] for name in names if name in body}
        try:
            count = await self._count(connection, part)
        except RequestError:  # a server without that route: its own number has to do
            return error
        message = f"the prompt has {count} tokens, and the model's limit is {error.max_model_len}: {error.message}"
        return ContextLengthError(message, error.status, error.max_model_len, count)


async def gather(
    items: Sequence[Item], call: Callable[[Item], Awaitable[T]], limit: int, return_exceptions: bool
) -> list[T | BaseException]:
    """Call for each item, in order of the items, with at most ``limit`` in flight.

    With ``return_exceptions`` an error takes its item's place; without, the first one ends the others.
    """
    results: list[Any] = [None] * len(items)
    pending = iter(enumerate(items))

    async def work() -> None:
        for index, item in pending:
            try:
                results[index] = await call(item)
            except Exception as exc:
                if not return_exceptions:
                    raise
                results[index] = exc

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return results


def _aborted() -> ServerConnectionError:
    # vLLM gives what it has as an answer with status 200; it must not be taken for a whole one.
    return ServerConnectionError("the server stopped in the middle of the answer (finish_reason=abort)")


def _retry_wait_s(attempt: int) -> float:
    return float(min(0.1 * 2**attempt, MAX_RETRY_WAIT_S))
