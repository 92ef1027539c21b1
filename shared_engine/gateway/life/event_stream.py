"""A stream of events (SSE) that goes on until its client or the gateway leaves, or it may no longer be read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def event(data: Any, name: str | None = None) -> bytes:
    """One, with its data as JSON."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(data).encode() + b"\n\n"


class EventStream:
    """As a response.

    Args:
        events: each as its bytes. One that is there at once is sent even while the gateway leaves.
        leaving: set when the gateway is to leave, which waits for its answers.
        may_read: asked before each event and comment; once it is false, the stream ends.
        comment_interval_s: seconds without an event until a comment, so that no proxy cuts the connection.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        leaving: asyncio.Event,
        may_read: Callable[[], bool],
        comment_interval_s: float,
    ) -> None:
        self._events = events
        self._may_read = may_read
        self._leaving = leaving
        self._interval_s = comment_interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if scope["method"] == "HEAD":  # who asks for no body waits for its end all the same
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        ends = [asyncio.create_task(_departure(receive)), asyncio.create_task(self._leaving.wait())]
        try:
            await self._send_until(ends, send)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _send_until(self, ends: list[asyncio.Task[Any]], send: Send) -> None:
        next_: asyncio.Task[bytes] | None = None
        try:
            while True:
                next_ = next_ or asyncio.create_task(anext(self._events, b""))
                await asyncio.wait([next_, *ends], timeout=self._interval_s, return_when=asyncio.FIRST_COMPLETED)
                if not self._may_read():
                    break
                has_ended = any(task.done() for task in ends)
                body = b"" if has_ended else b": waiting\n\n"
                if next_.done():
                    body, next_ = next_.result(), None
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                if has_ended or not body:
                    break
        finally:
            if next_ is not None:
                next_.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await next_
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
