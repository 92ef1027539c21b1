"""The page before a gateway that says what a test has it say: any state, any moment. The files are the real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from shared_engine.gateway.page.files import routes

GIB = 1 << 30
LOOK_S = 0.03


def model(id_: str, state: str | None = "ready", **more: Any) -> dict[str, Any]:
    """One, as ``/api/v1/inference/status`` has it."""
    return {
        "id": id_, "model": f"org/{id_}", "name": None, "description": None, "aliases": [], "adapters": [],
        "unlisted": False, "is_remote": False, "state": state, "progress": None, "failure": None,
        "capabilities": ["chat", "completions"], "max_model_len": 8192, "devices": [], "memory_bytes": None,
        "pinned": False, "preload": False, "start_s": None, "leaves_at": None, "leaves_in_s": None,
        "requests": {"running": 0, "waiting": 0, "limit": 1000, "queue_limit": 1000}, "tokens_per_s": None,
        "tokens": None, "members": [],
    } | more  # fmt: skip


def request(id_: str, **more: Any) -> dict[str, Any]:
    """One in flight, as ``/api/v1/inference/requests`` has it."""
    return {
        "id": id_, "model": "one", "route": "/v1/chat/completions", "key": None, "state": "running", "age_s": 3.0,
        "is_stream": True, "events": 20, "request_id": None,
    } | more  # fmt: skip


def delta(**fields: Any) -> dict[str, Any]:
    """One piece of a streamed answer."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}}
DONE = "[DONE]"


@dataclass
class Scene:
    """What it says, and was asked.

    Attributes:
        pieces: of the next answers: events, comments, seconds to wait, or what is waited for, and cleared then.
        whole: an answer in one piece, in their place.
        refusal: the status and body of the next answers instead.
        key: asked for, if it is not None.
        asked: path and body of each POST.
        heard: path and key of each stream of what changes, and of a log.
        held: what is done only once its event is set, such as ``unload``.
        left: set when a client has left an answer before its end.
        listeners: how many are told what changes.
    """

    models: list[dict[str, Any]] = field(default_factory=lambda: [model("one"), model("two", "stopped")])
    devices: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    is_admin: bool = True
    log: list[dict[str, Any]] = field(default_factory=list)
    pieces: Iterable[dict[str, Any] | str | float | asyncio.Event] = (delta(content="Hello"), END, USAGE, DONE)
    whole: dict[str, Any] | None = None
    refusal: tuple[int, dict[str, Any]] | None = None
    key: str | None = None
    asked: list[tuple[str, Any]] = field(default_factory=list)
    heard: list[tuple[str, str | None]] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: int = 0
    url: str = ""
    is_over: bool = False

    def __getitem__(self, id_: str) -> dict[str, Any]:
        return next(each for each in self.models if each["id"] == id_)

    def app(self) -> Starlette:
        life = "/api/v1/inference"
        guarded = [
            Route(f"{life}/{{rest:path}}", self._act, methods=["POST"]),
            Route("/events", self._events),
            Route(f"{life}/logs", self._logs),
            Route("/v1/{rest:path}", self._answer, methods=["POST"]),
            Route("/{rest:path}", self._answer, methods=["POST"]),
        ]
        return Starlette(routes=[*routes(), *guarded])

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "give an API key", "code": "invalid_api_key"}}, 401)

    def _hears(self, request: Request) -> Response | None:
        key = request.headers.get("authorization")
        self.heard.append((request.url.path.rpartition("/")[2], key and key.removeprefix("Bearer ")))
        return self._refused(request)

    async def _events(self, request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            last = {"status": "", "requests": ""}
            self.listeners += 1
            try:
                while not self.is_over:
                    for name, told in (("status", self._status()), ("requests", self._requests())):
                        if last[name] != (text := json.dumps(told)):
                            last[name] = text
                            yield f"event: {name}\ndata: {text}\n\n"
                    await asyncio.sleep(LOOK_S)
            finally:
                self.listeners -= 1

        return self._hears(request) or StreamingResponse(stream(), media_type="text/event-stream")

    def _status(self) -> dict[str, Any]:
        return {
            "models": self.models, "devices": self.devices, "version": "0", "started": 0, "is_admin": self.is_admin
        }  # fmt: skip

    def _requests(self) -> dict[str, Any]:
        return {"requests": self.requests, "total": len(self.requests)}

    async def _logs(self, request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            sent = 0
            while not self.is_over:
                for line in self.log[sent:]:
                    yield f"data: {json.dumps(line)}\n\n"
                sent = len(self.log)
                await asyncio.sleep(LOOK_S)

        return self._hears(request) or StreamingResponse(stream(), media_type="text/event-stream")

    async def _act(self, request: Request) -> Response:
        what = request.path_params["rest"]
        self.asked.append((what, await request.json()))
        if what in self.held:
            await self.held[what].wait()
        if self.refusal is not None:
            return JSONResponse(self.refusal[1], self.refusal[0])
        return self._refused(request) or JSONResponse({})

    async def _answer(self, request: Request) -> Response:
        self.asked.append((request.path_params["rest"], await request.json()))
        if self.refusal is not None:
            return JSONResponse(self.refusal[1], self.refusal[0])
        if self.whole is not None:
            return JSONResponse(self.whole)

        async def stream() -> AsyncIterator[str]:
            try:
                for piece in self.pieces:
                    if isinstance(piece, asyncio.Event):
                        await piece.wait()
                        piece.clear()
                    elif isinstance(piece, int | float):
                        await asyncio.sleep(piece)
                    elif isinstance(piece, str) and piece.startswith(":"):
                        yield f"{piece}\n\n"
                    else:
                        yield f"data: {piece if isinstance(piece, str) else json.dumps(piece)}\n\n"
            except asyncio.CancelledError:
                self.left.set()
                raise

        return self._refused(request) or StreamingResponse(stream(), media_type="text/event-stream")


class Quiet(uvicorn.Server):
    """Leaves signals to the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def shown(scene: Scene, port: int = 0) -> AsyncIterator[Scene]:
    """The scene on a port of this machine, by itself a free one."""
    server = Quiet(uvicorn.Config(scene.app(), port=port, log_config=None, lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        scene.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        yield scene
    finally:
        scene.is_over = True
        server.should_exit = server.force_exit = True
        await serving
