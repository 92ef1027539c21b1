"""The service around either framework: routes, streamed answers, errors, health and metrics.

PUT    /api/documents/NAME   text, in UTF-8
GET    /api/documents
DELETE /api/documents/NAME
POST   /api/ask              {"question": ...} -> events: sources, text ..., usage; or error
GET    /health               the engines' states, and what was counted
GET    /metrics              for Prometheus
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rag_service.config import Config
from rag_service.store import Source, Store
from shared_engine import (
    ContextLengthError,
    Engine,
    EngineBusyError,
    EngineError,
    EngineSettings,
    InvalidInputError,
    RateLimitError,
    RequestTimeoutError,
    VLLMError,
)
from shared_engine.prometheus import EnginesCollector, RequestsCollector

PAGE = Path(__file__).with_name("page")
SAMPLES = Path(__file__).with_name("documents")
# By name, and nothing of other sites: a page of theirs must not ask this server in a reader's browser.
HOSTS = ["127.0.0.1", "localhost"]
POLICY = "default-src 'self'; frame-ancestors 'none'"
BUSY_S = 5
LEFT = 499
Returned = TypeVar("Returned")

logger = logging.getLogger("rag_service")


@dataclass(frozen=True)
class Text:
    """What an answer goes on with."""

    text: str


@dataclass(frozen=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int


Event = list[Source] | Text | Usage


class Rag(Protocol):
    """What either app is.

    Attributes:
        engines: by what they are for.
    """

    engines: dict[str, Engine]

    async def add(self, name: str, text: str) -> None: ...

    def answer(self, question: str) -> AsyncGenerator[Event]: ...


class Question(BaseModel):
    """What is asked."""

    question: str = Field(min_length=1, max_length=4_000)


def embedded_by(config: Config) -> str:
    """The model that makes vectors; where a server says itself which it has, that server's URL."""
    given = {name: config.embeddings[name] for name in ("model", "base_url") if name in config.embeddings}
    settings = EngineSettings(**given)  # which also knows variables, such as VLLM_API_URL
    return str(settings.model or settings.base_url)


def make_app(make_rag: Callable[[Config, Store], Rag], config: Config) -> FastAPI:
    """The app, on one of the two frameworks. Starts no engine: the first document or question does."""
    store = Store(config.database, embedded_by(config))
    rag = make_rag(config, store)
    registry = CollectorRegistry()
    registry.register(RequestsCollector())
    registry.register(EnginesCollector())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for name, engine in rag.engines.items():
            try:
                await leave(name, engine)
            except EngineError as exc:  # the other one is ended all the same
                logger.error("the engine for %s: %s", name, exc)

    app = FastAPI(title="A RAG service", lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_exception_handler(VLLMError, refused)
    app.add_exception_handler(sqlite3.Error, refused)

    @app.put("/api/documents/{name:path}", status_code=204)
    async def put_document(name: str, request: Request) -> None:
        text = await body_of(request, config.max_document_bytes)
        if not name.strip() or not text.strip():
            raise HTTPException(400, "a document has a name and text")
        await rag.add(name, text)

    @app.get("/api/documents")
    async def documents() -> list[dict[str, Any]]:
        return [asdict(each) for each in await asyncio.to_thread(store.documents)]

    @app.delete("/api/documents/{name:path}", status_code=204)
    async def remove_document(name: str) -> None:
        if not await asyncio.to_thread(store.remove, name):
            raise HTTPException(404, f"there is no document {name}")

    @app.post("/api/ask")
    async def ask(question: Question, request: Request) -> Response:
        if not await asyncio.to_thread(store.documents):
            raise HTTPException(409, "there are no documents yet: add one first")
        events = rag.answer(question.question)
        # What fails before the first word has a status of its own: the answer has not begun.
        first = await while_connected(request, beginning(events))
        if first is None:
            return Response(status_code=LEFT)
        return StreamingResponse(
            written(first, events, store), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        totals = await asyncio.to_thread(store.totals)
        return {"engines": {name: await state_of(engine) for name, engine in rag.engines.items()}, **asdict(totals)}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(registry))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    app.mount("/page", StaticFiles(directory=PAGE))
    app.mount("/samples", StaticFiles(directory=SAMPLES))
    return app


# ---- documents


async def body_of(request: Request, limit: int) -> str:
    """Of a request, as text. No more is read than may be.

    Raises:
        HTTPException: 413 or 400.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise HTTPException(413, f"the document has more than {limit:,} bytes: cut it, and add its parts")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise HTTPException(400, "the document is not text in UTF-8") from None


# ---- answers


async def beginning(events: AsyncGenerator[Event]) -> list[Event]:
    """All up to the first word."""
    found: list[Event] = []
    async for event in events:
        found.append(event)
        if isinstance(event, Text):
            break
    return found


async def while_connected(request: Request, work: Coroutine[Any, Any, Returned]) -> Returned | None:
    """What the work returns; None where the client has left before, with which the work ends too."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def left(request: Request) -> None:
    """Return when the client has."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def written(first: list[Event], rest: AsyncGenerator[Event], store: Store) -> AsyncIterator[str]:
    """An answer as server-sent events. A client that leaves cancels this, and so the answer's request in vLLM."""
    async with aclosing(rest):
        try:
            async for event in joined(first, rest):
                if isinstance(event, Usage):
                    await asyncio.to_thread(store.count_answer, event.prompt_tokens, event.completion_tokens)
                yield line_of(event)
        except (VLLMError, sqlite3.Error) as exc:
            logger.exception("an answer broke off")
            yield f"event: error\ndata: {json.dumps({'detail': words_of(exc)})}\n\n"


async def joined(first: list[Event], rest: AsyncGenerator[Event]) -> AsyncIterator[Event]:
    for event in first:
        yield event
    async for event in rest:
        yield event


def line_of(event: Event) -> str:
    name = "sources" if isinstance(event, list) else type(event).__name__.lower()
    data = [asdict(each) for each in event] if isinstance(event, list) else asdict(event)
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


# ---- errors


async def refused(_: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status >= 500:
        logger.error("%s", error)  # with the engine's last log lines
    headers = {"Retry-After": str(BUSY_S)} if isinstance(error, EngineBusyError | RateLimitError) else None
    return JSONResponse({"detail": words_of(error)}, status, headers)


def status_of(error: Exception) -> int:
    """Of an answer that has not begun."""
    match error:
        case ContextLengthError():
            return 413
        case InvalidInputError():
            return 400
        case RequestTimeoutError():
            return 504
        case EngineError() | RateLimitError() | sqlite3.Error():
            return 503  # no engine can start here now, or it has no room
        case _:
            return 502  # a server at a base_url


def words_of(error: Exception) -> str:
    """Without an engine's log, which is for whoever runs this."""
    return str(getattr(error, "message", error))


# ---- engines


async def state_of(engine: Engine) -> dict[str, Any]:
    try:
        info = await engine.astatus()
    except EngineError as exc:  # it can't even be looked for: the service itself is well
        return {"model": str(engine.settings.model), "state": "failed", "progress": None, "error": exc.message}
    return {
        "model": info.name,
        "state": info.state.value,
        "progress": str(info.progress) if info.progress else None,
        "error": info.last_error,
    }


async def leave(name: str, engine: Engine) -> None:
    """End it, also in a start, unless another process has requests there; a server at a ``base_url`` is not ours."""
    if engine.settings.base_url is None:
        if set((await engine.astatus()).lease_holders) - {os.getpid()}:
            logger.warning("another app uses the engine for %s: it stays", name)
        else:
            await engine.ashutdown(force=True)
    await engine.aclose()
