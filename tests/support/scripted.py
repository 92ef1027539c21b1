"""A server that says what a test wants said: for what tiny_chat would not say, or not always."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.support.remote_server import RemoteServer

PIECE = 7
FLIGHT_S = 20


def answers(server: RemoteServer, *messages: str | dict[str, Any]) -> None:
    """Give these answers in turn, the last one again and again; whole or in pieces, as vLLM does and as is asked for.

    Each is a text, or a message of vLLM's with ``content``, ``reasoning`` or ``tool_calls``; and with ``finish_reason``
    where that does not follow from them. The first costs 11 tokens of prompt and 1 of answer, the second 12 and 2, and
    so on.
    """
    said = iter(range(1, 1000))

    async def handler(request: web.Request) -> web.StreamResponse:
        number = next(said)
        answer = messages[min(number, len(messages)) - 1]
        message = {"role": "assistant", **({"content": answer} if isinstance(answer, str) else answer)}
        usage = {"prompt_tokens": 10 + number, "completion_tokens": number, "total_tokens": 10 + 2 * number}
        head = {"id": f"chatcmpl-{number}", "model": "served"}
        reason = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else "stop")
        if not (await request.json()).get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return web.json_response({**head, "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for delta in _pieces(message):
            await _send(response, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await _send(response, {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        await _send(response, {**head, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    server.handler = handler


def flights(server: RemoteServer, *sizes: int) -> None:
    """Answer a flight of so many requests when all of it is there, then the next one, the last size again and again.

    Fewer at once are never answered.
    """
    left = list(sizes)
    waiting: list[asyncio.Event] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        event = asyncio.Event()
        waiting.append(event)
        if len(waiting) >= left[0]:
            for each in waiting:
                each.set()
            waiting.clear()
            del left[: len(left) > 1]
        await asyncio.wait_for(event.wait(), FLIGHT_S)
        return await server.answer(request)

    server.handler = handler


def call(name: str, _written: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A message that calls one tool; with the arguments as they are ``_written``, where that is not their JSON."""
    function = {"name": name, "arguments": json.dumps(arguments) if _written is None else _written}
    return {"content": None, "tool_calls": [{"id": f"call-{name}", "type": "function", "function": function}]}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _pieces(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for part in ("reasoning", "content"):
        for piece in _cut(message.get(part) or ""):
            yield {part: piece}
    for index, tool_call in enumerate(message.get("tool_calls") or ()):
        function = tool_call["function"]
        yield {"tool_calls": [{**tool_call, "index": index, "function": {"name": function["name"], "arguments": ""}}]}
        for piece in _cut(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
