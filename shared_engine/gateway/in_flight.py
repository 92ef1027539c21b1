"""The requests that are in the gateway now: who asked what, how far each is; and their end, if somebody wishes it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any

from shared_engine.gateway.refusals import RefusedError


@dataclass(eq=False)
class InFlightRequest:
    """One of them.

    Attributes:
        key: the name of the API key that asked; None where none was asked for.
        given_id: the client's own x-request-id.
        is_waiting: for a place, for its model to be loaded, or for room.
        events: of a stream, so many have been passed on.
    """

    model: str
    route: str
    key: str | None = None
    is_stream: bool = False
    given_id: str | None = None
    id: str = field(default_factory=lambda: f"{getrandbits(64):016x}")
    began: float = field(default_factory=time.monotonic)
    is_waiting: bool = True
    events: int = 0
    is_cancelled: bool = False
    answering: asyncio.Task[Any] | None = field(default=None, repr=False)

    def saw(self, piece: bytes) -> None:
        """A piece of its stream of events."""
        self.events += piece.count(b"data: ")

    def cancel(self) -> None:
        """End it; its client is told."""
        self.is_cancelled = True
        if self.answering is not None:
            self.answering.cancel()

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "route": self.route,
            "key": self.key,
            "state": "waiting" if self.is_waiting else "running",
            "age_s": round(time.monotonic() - self.began, 3),
            "is_stream": self.is_stream,
            "events": self.events,
            "request_id": self.given_id,
        }


CANCELLED = RefusedError(499, "the request was cancelled at the gateway", "cancelled", should_retry=False)


class InFlight:
    """All of them, the oldest first."""

    def __init__(self) -> None:
        self._requests: dict[str, InFlightRequest] = {}

    @contextlib.contextmanager
    def listed(self, request: InFlightRequest) -> Iterator[None]:
        """Until it ends."""
        self._requests[request.id] = request
        try:
            yield
        finally:
            del self._requests[request.id]

    def __iter__(self) -> Iterator[InFlightRequest]:
        return iter(list(self._requests.values()))

    def get(self, id_: str) -> InFlightRequest | None:
        return self._requests.get(id_)
