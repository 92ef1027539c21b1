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
        answers = await self._answers(scope, receive)
        refused = next(((at, each) for at, each in enumerate(answers) if each is not None and each.status != 200), None)
        if refused is not None:
            at, answer = refused
            status, headers, body = answer.status, answer.headers, _located(bytes(answer.body), f"{self._name}[{at}]")
        else:
            status, headers = 200, [(b"content-type", b"application/json")]
            body = b"[" + b",".join(bytes(each.body) for each in answers if each is not None) + b"]"
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answers(self, scope: Scope, receive: Receive) -> list[_Answer | None]:
        """None of those that were ended, as another one was refused."""
        answers: list[_Answer | None] = [None] * self._count
        positions = itertools.count()
        is_refused = False
        tasks: list[asyncio.Task[None]] = []

        async def work() -> None:
            nonlocal is_refused
            while (at := next(positions)) < self._count:
                answer = _Answer()
                await self._make(at)(scope, receive, answer.send)
                if is_refused:
                    return
                answers[at] = answer
                if answer.status >= 400:
                    is_refused = True
                    for task in tasks:
                        if task is not asyncio.current_task():
                            task.cancel()
                    return

        tasks += [asyncio.create_task(work()) for _ in range(min(self._at_once, self._count))]
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()
        return answers


def _located(body: bytes, place: str) -> bytes:
    """The refusal, with the place of what was refused."""
    told: dict[str, Any] = json.loads(body)
    if isinstance(told.get("error"), dict):
        told["error"] |= {"message": f"{place}: {told['error'].get('message')}", "param": place}
    return json.dumps(told).encode()
