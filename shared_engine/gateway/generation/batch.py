"""Many requests as one: each goes to the model by itself, and what they are answered comes together, in order."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from shared_engine.gateway.passing import PassedOn


@dataclass
class _Answer:
    """What one of them was answered, caught on its way to a client."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message["headers"]
        else:
            self.body += message.get("body", b"")


class Batch:
    """As a response: a list with the JSON of each answer; or the first refusal, which ends the others.

    Args:
        make: the request of each position.
        at_once: so many are in flight.
        name: of the list that they come from, for the refusal.
    """

    def __init__(self, count: int, make: Callable[[int], PassedOn], at_once: int, name: str) -> None:
        self._count = count
        self._make = make
        self._at_once = at_once
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that leaves ends all of them."""
        over = asyncio.Event()
        leaving = asyncio.create_task(_set_at_departure(receive, over))
        try:
            answers = await self._answers(scope, over)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        refused = next(((at, each) for at, each in enumerate(answers) if each is not None and each.status != 200), None)
        if refused is not None:
            at, answer = refused
            status, headers, body = answer.status, answer.headers, _located(bytes(answer.body), f"{self._name}[{at}]")
        elif None in answers:
            return  # the client has left
        else:
            status, headers = 200, [(b"content-type", b"application/json")]
            body = b"[" + b",".join(bytes(each.body) for each in answers if each is not None) + b"]"
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answers(self, scope: Scope, over: asyncio.Event) -> list[_Answer | None]:
        """None of those that did not come to their end."""
        answers: list[_Answer | None] = [None] * self._count
        positions = itertools.count()

        async def client_is_there() -> Message:
            await over.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            while not over.is_set() and (at := next(positions)) < self._count:
                answer = _Answer()
                await self._make(at)(scope, client_is_there, answer.send)
                if answer.status:
                    answers[at] = answer
                if answer.status >= 400:
                    over.set()

        await asyncio.gather(*(work() for _ in range(min(self._at_once, self._count))))
        return answers


def _located(body: bytes, place: str) -> bytes:
    """The refusal, with the place of what was refused."""
    told: dict[str, Any] = json.loads(body)
    if isinstance(told.get("error"), dict):
        told["error"] |= {"message": f"{place}: {told['error'].get('message')}", "param": place}
    return json.dumps(told).encode()


async def _set_at_departure(receive: Receive, over: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    over.set()
