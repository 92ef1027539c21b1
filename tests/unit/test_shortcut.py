"""The short way in vLLM's application: taken for what is plain, with the same answer; all else goes the whole way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")  # not in the environment of the oldest releases

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from shared_engine.launcher.shortcut import PATHS, Shortcut, functions_of

CHAT, TEXT = sorted(PATHS)
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


class Chat(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    stream: bool = False


class KnownError(Exception):
    pass


async def is_json(raw_request: Request) -> None:
    if raw_request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise RequestValidationError(["not JSON"])


class CountedMiddleware:
    """Stands for the way through all middlewares."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"].state.went_the_whole_way += 1
        await self._app(scope, receive, send)


CountedMiddleware.__name__ = "PrometheusInstrumentatorMiddleware"


def application() -> FastAPI:
    """Built as vLLM builds its own."""
    app = FastAPI()
    app.state.went_the_whole_way = 0
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(CountedMiddleware)

    @app.post(CHAT, dependencies=[Depends(is_json)])
    async def chat(request: Chat, raw_request: Request) -> Any:
        assert raw_request.app is app
        said = request.messages[-1]["content"]
        if said == "known":
            raise KnownError
        if said == "unexpected":
            raise LookupError(said)
        if said == "refused":
            return JSONResponse({"error": "refused"}, status_code=400)
        if said == "wait":
            while (await raw_request.receive())["type"] != "http.disconnect":
                pass
            app.state.was_left = True
            return None
        if request.stream:
            return StreamingResponse(pieces(), media_type="text/event-stream")
        return JSONResponse({"said": said, "by": raw_request.headers.get("user-agent")}, headers={"x-more": "1"})

    @app.exception_handler(KnownError)
    async def known(_: Request, exc: KnownError) -> JSONResponse:
        return JSONResponse({"error": type(exc).__name__}, status_code=418)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, exc: Exception) -> JSONResponse:
        return JSONResponse({"error": "unexpected"}, status_code=500)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": str(exc.errors()[0])}, status_code=400)

    return app


async def pieces() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"data: %d\n\n" % number


async def both(**request: Any) -> tuple[httpx.Response, bool]:
    """The answer, which is the same by either way, and whether the short one was taken."""
    answers = []
    for is_short in (True, False):
        app = application()
        served: Any = Shortcut(app, app) if is_short else app
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            answers.append(await client.request(**({"method": "POST", "url": CHAT} | request)))
        if is_short:
            took_it = app.state.went_the_whole_way == 0
        else:
            assert app.state.went_the_whole_way == 1
    short, whole = answers
    for each in answers:
        each.headers.pop("vary", None)  # for browsers, whose requests go the whole way
    assert (short.status_code, short.content) == (whole.status_code, whole.content)
    assert short.headers == whole.headers
    return short, took_it


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (BODY, 200),
        (BODY | {"stream": True}, 200),
        (BODY | {"unknown": 1}, 200),
        (BODY | {"messages": [{"role": "user", "content": "refused"}]}, 400),
        (BODY | {"messages": [{"role": "user", "content": "known"}]}, 418),
        (BODY | {"messages": [{"role": "user", "content": "unexpected"}]}, 500),
    ],
)
async def test_what_is_plain_takes_the_short_way_to_the_same_answer(body: dict[str, Any], status: int) -> None:
    answer, took_it = await both(json=body)
    assert took_it
    assert answer.status_code == status


JSON = b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}]}'


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"json": {"model": "m"}}, 400),
        ({"json": BODY | {"messages": "Hello"}}, 400),
        ({"json": [BODY]}, 400),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"", "headers": {"content-type": "application/json"}}, 400),
        ({"content": JSON, "headers": {"content-type": "text/plain"}}, 400),
        ({"content": JSON}, 400),
        ({"content": JSON, "headers": {"content-type": "application/json; charset=utf-8"}}, 200),
        ({"json": BODY, "headers": {"origin": "http://page"}}, 200),
        ({"json": BODY, "params": {"a": "b"}}, 200),
        ({"method": "GET"}, 405),
        ({"method": "OPTIONS", "headers": {"origin": "http://page", "access-control-request-method": "GET"}}, 200),
        ({"json": BODY, "url": "/v1/elsewhere"}, 404),
        ({"json": BODY, "url": TEXT}, 404),
    ],
)
async def test_all_else_goes_the_whole_way(request_: dict[str, Any], status: int) -> None:
    answer, took_it = await both(**request_)
    assert not took_it
    assert answer.status_code == status


async def asked(*messages: dict[str, Any]) -> tuple[FastAPI, list[Any]]:
    """The application, asked with these, and what it sent."""
    app, left, got = application(), list(messages), []

    async def receive() -> Any:
        return left.pop(0) if left else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        got.append(message)

    await Shortcut(app, app)(scope_of(CHAT), receive, send)
    return app, got


def piece(body: bytes, *, is_last: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": not is_last}


@pytest.mark.parametrize(("body", "status", "whole_ways"), [(JSON, 200, 0), (JSON[:-1] + b" ", 400, 1)])
async def test_a_body_in_pieces_arrives_whole(body: bytes, status: int, whole_ways: int) -> None:
    app, got = await asked(piece(body[:10], is_last=False), piece(body[10:], is_last=True))
    assert (got[0]["status"], app.state.went_the_whole_way) == (status, whole_ways)


async def test_what_nobody_expected_is_answered_and_raised_for_the_servers_log() -> None:
    app, body, got = application(), JSON.replace(b"Hello", b"unexpected"), []

    async def receive() -> Any:
        return piece(body, is_last=True)

    async def send(message: Any) -> None:
        got.append(message)

    with pytest.raises(LookupError):
        await Shortcut(app, app)(scope_of(CHAT), receive, send)
    assert (got[0]["status"], app.state.went_the_whole_way) == (500, 0)


async def test_a_client_that_leaves_is_seen() -> None:
    app, got = await asked(piece(JSON.replace(b"Hello", b"wait"), is_last=True), {"type": "http.disconnect"})
    assert app.state.was_left
    assert (got, app.state.went_the_whole_way) == ([], 0)


async def test_what_a_client_has_begun_to_send_is_not_taken_for_whole() -> None:
    app, _ = await asked(piece(JSON, is_last=False), {"type": "http.disconnect"})
    assert app.state.went_the_whole_way == 1


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "http_version": "1.1", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "state": {}, "raw_path": path.encode(), "scheme": "http",
        "asgi": {"version": "3.0"}, "client": None, "server": None,
    }  # fmt: skip


class AnotherMiddleware(CountedMiddleware):
    """As ``--middleware`` and ``--api-key`` add one: it must see each request."""


def test_with_a_middleware_that_is_not_known_nothing_takes_it() -> None:
    app = application()
    assert set(functions_of(app)) == {CHAT}
    app.add_middleware(AnotherMiddleware)
    assert functions_of(app) == {}


def test_a_function_that_takes_anything_else_is_left_alone() -> None:
    app = FastAPI()

    @app.post(CHAT)
    async def chat(request: Chat, raw_request: Request, more: int = 0) -> None: ...

    @app.post(TEXT)
    async def text(request: dict[str, Any], raw_request: Request) -> None: ...

    assert functions_of(app) == {}
