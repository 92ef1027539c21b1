"""One request as those see it who count and trace: sent, waiting, tried again, answered, ended."""

from __future__ import annotations

import asyncio
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shared_engine.request import tracing
from shared_engine.request.routes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    POOLING,
    RERANK,
    RERANK_UNREAD,
    RESPONSES,
)
from shared_engine.request.tally import CANCELLED, Entry, tally_of
from shared_engine.results import GenerationChunk, TokenUsage

if TYPE_CHECKING:
    from shared_engine.request.endpoint import Connection, Endpoint

OPERATIONS = {
    CHAT: "chat",
    RESPONSES: "chat",
    MESSAGES: "chat",
    COMPLETIONS: "text_completion",
    EMBEDDINGS: "embeddings",
    POOLING: "embeddings",
    RERANK: "rerank",
    RERANK_UNREAD: "rerank",
}
"""What is counted, under the names of OpenTelemetry's conventions for generative AI."""


class Observed:
    """A request of a user's, from the call to its end: ``with Observed(...) as observed``, or until ``end``.

    Args:
        path: the route.
        body: the JSON that is sent, for traces.
    """

    __slots__ = (
        "_began", "_connection", "_endpoint", "_first_s", "_operation", "_retries", "_span", "_usage", "_wait_s",
        "has_reached_caller",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, path: str, body: bytes, *, is_streamed: bool = False) -> None:
        self._endpoint = endpoint
        self._connection: Connection | None = None
        self._operation = OPERATIONS.get(path)
        self._wait_s: float | None = None
        self._first_s: float | None = None
        self._retries = 0
        self._usage: TokenUsage | None = None
        self.has_reached_caller = False
        self._began = perf_counter()
        self._span = None
        if self._operation is not None:
            self._span = tracing.begin(self._operation, endpoint.name, body, is_streamed=is_streamed)

    def connected(self, connection: Connection) -> Connection:
        """The server can be asked: by this connection, so that its own trace continues this one."""
        self._connection = connection
        waited_s = perf_counter() - self._began
        if self._wait_s is None:
            self._wait_s = waited_s
        return connection if self._span is None else self._span.connected(connection, waited_s)

    def tried_again(self, error: BaseException) -> None:
        """A try has failed, and another one follows."""
        self._retries += 1
        if self._span is not None:
            self._span.tried_again(error)

    def saw(self, chunk: GenerationChunk) -> None:
        """A piece of a stream goes to the caller."""
        self.has_reached_caller = True
        if self._first_s is None:
            self._first_s = perf_counter() - self._began
        if chunk.usage is not None:
            self._usage = chunk.usage
        if self._span is not None:
            self._span.saw(chunk)

    def answered(self, result: Any) -> None:
        """The answer is whole."""
        self._usage = getattr(result, "usage", None)
        if self._span is not None:
            self._span.answered(result)

    def __enter__(self) -> Observed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """The request has ended: well, with an error, or since nobody wants the answer any more."""
        if self._operation is None:
            return
        is_cancelled = isinstance(error, (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt))
        ended = None if error is None else CANCELLED if is_cancelled else type(error).__name__
        took_s = perf_counter() - self._began
        entry = Entry(ended, took_s, self._wait_s, self._first_s, self._retries, self._usage)
        tally_of(self._endpoint.counted_by(self._connection)).note(entry)
        if self._span is not None:
            self._span.end(ended, error, self._usage, self._first_s)
