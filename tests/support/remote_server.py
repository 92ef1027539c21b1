"""A real HTTP server that answers as told: for faults of a remote server that vLLM can't be made to show."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_used_ports: set[int] = set()
"""What the engine remembers of a URL, and counts for it, must not be another test's server's."""


def chat_answer(text: str = "Hi", finish_reason: str = "stop") -> dict[str, Any]:
    """An answer as vLLM 0.32 gives it."""
    message = {"role": "assistant", "content": text, "tool_calls": None}
    return {
        "id": "chatcmpl-1",
        "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }


async def no_such_route(request: web.Request) -> web.StreamResponse:
    raise web.HTTPNotFound


class RemoteServer:
    """Answers requests for text, chat, embeddings and scores with ``handler``; the rest as vLLM would.

    Its model has a token for each word, and two around them.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.queries: list[dict[str, str]] = []
        self.looks: list[tuple[str, dict[str, str]]] = []
        """What else it was asked for: routes, and the headers."""
        self.aborted = threading.Event()
        self.counts_tokens = True
        self.models: list[dict[str, Any]] = [{"id": "served", "max_model_len": 2048}]
        self.lists_models = True
        self.handler: Handler = self.answer
        self.metrics: Handler = no_such_route

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(chat_answer())

    def fails(
        self, status: int, *, times: int = 1000, message: str = "no", headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error ``times`` times, then well."""
        left = [times]

        async def handler(request: web.Request) -> web.StreamResponse:
            if left[0] == 0:
                return await self.answer(request)
            left[0] -= 1
            error = {"error": {"message": message, "code": status}}
            return web.json_response(error, status=status, headers=headers)

        self.handler = handler

    def streams(self, *texts: str, then: str = "done") -> None:
        """Stream the texts, then end well (``done``), drop the connection (``cut``), or stay silent (``hang``)."""

        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for position, text in enumerate(texts or [""]):
                is_last = then == "done" and position + 1 >= len(texts)
                choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop" if is_last else None}
                event = {"id": "c", "model": "served", "choices": [choice]}
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if then == "cut":
                assert request.transport is not None
                request.transport.close()
            elif then == "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.aborted.set()
            else:
                await response.write(b"data: [DONE]\n\n")
            return response

        self.handler = handler

    async def _recorded(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((dict(request.headers), await request.json()))
        self.queries.append(dict(request.query))
        return await self.handler(request)

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        self.looks.append((request.path, dict(request.headers)))
        if not self.counts_tokens:
            raise web.HTTPNotFound
        body = await request.json()
        text = body["prompt"] if "prompt" in body else " ".join(message["content"] for message in body["messages"])
        count = len(text.split()) + (2 if body.get("add_special_tokens", True) else 0)
        spelled = {"token_strs": [f"t{number}" for number in range(count)]} if body.get("return_token_strs") else {}
        return web.json_response({"count": count, "tokens": list(range(count)), **spelled})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.looks.append((request.path, dict(request.headers)))
        if not self.lists_models:
            raise web.HTTPNotFound
        return web.json_response({"data": self.models})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        self.looks.append((request.path, dict(request.headers)))
        return await self.metrics(request)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._recorded)
        app.router.add_post("/v1/completions", self._recorded)
        app.router.add_post("/v1/messages", self._recorded)
        app.router.add_post("/v1/responses", self._recorded)
        app.router.add_post("/v1/embeddings", self._recorded)
        app.router.add_post("/v1/rerank", self._recorded)
        app.router.add_post("/v2/rerank", self._recorded)
        app.router.add_post("/pooling", self._recorded)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app


@contextmanager
def running_server() -> Iterator[RemoteServer]:
    """A server on a free port of this machine, in a thread of its own."""
    server = RemoteServer()
    with running_app(server.app()) as server.url:
        yield server


@contextmanager
def running_app(app: web.Application) -> Iterator[str]:
    """``app`` on a free port of this machine, in a thread of its own; its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        while True:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            if (port := runner.addresses[0][1]) not in _used_ports:
                _used_ports.add(port)
                return runner
            await site.stop()

    async def end() -> None:
        # Of a connection that is accepted while its server closes, Python forgets to close the socket.
        await asyncio.sleep(0.01)
        await runner.cleanup()

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
