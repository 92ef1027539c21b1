"""Whatever a request has in it, the gateway answers, and never with a fault of its own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Scope

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import read_config
from tests.support.remote_server import running_app

ROUTES = (
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/a",
    "/v1/audio/transcriptions",
    "/tokenize",
    "/metrics",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/api/tags",
    "/api/nothing",
)
KINDS = (b"application/json", b"multipart/form-data; boundary=x", b"multipart/form-data", b"text/plain", b"")
NAMES = (b"host", b"origin", b"authorization", b"x-api-key", b"content-length", b"content-type", b"x-session-id", b"a")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
fields = (
    "model",
    "messages",
    "stream",
    "image_url",
    "source",
    "url",
    "prompt",
    "input",
    "options",
    "format",
    "think",
    "images",
)
bodies = (
    st.binary(max_size=99)
    | st.dictionaries(st.sampled_from(fields), json_values | st.just("a"), max_size=4).map(
        lambda it: json.dumps(it).encode()
    )
    | st.binary(max_size=9).map(
        lambda value: b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n--x--\r\n' % value
    )
)
paths = st.sampled_from(ROUTES) | st.text(max_size=20).map(lambda text: f"/v1/{text}") | st.text(max_size=20)
# As they come from a connection: without line breaks.
header_values = st.binary(max_size=20).map(lambda value: value.translate(None, b"\r\n\0")) | st.just(b"localhost")
headers = st.lists(st.tuples(st.sampled_from(NAMES), header_values), max_size=4)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    with running_app(app) as url:
        file = tmp_path_factory.mktemp("fuzz") / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": url, "model": "m", "max_retries": 0}}}))
        yield Catalog(read_config(file))


async def status_of(app: ASGIApp, scope: Scope, body: bytes) -> int:
    """What is answered; all of it must come."""
    messages: list[Message] = []
    asked = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    assert messages[0]["type"] == "http.response.start"
    assert not messages[-1].get("more_body", False)
    return int(messages[0]["status"])


@pytest.mark.slow
@settings(
    max_examples=300 + 100 * int(os.environ.get("FUZZ_EXAMPLES", "0")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    method=st.sampled_from(("GET", "POST", "DELETE", "PUT", "OPTIONS", "X")),
    path=paths, query=st.binary(max_size=20), kind=st.sampled_from(KINDS), more=headers, body=bodies,
)  # fmt: skip
def test_no_request_is_a_fault_of_the_gateways(
    catalog: Catalog, method: str, path: str, query: bytes, kind: bytes, more: list[tuple[bytes, bytes]], body: bytes
) -> None:
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": query, "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-type", kind), *more],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip

    async def ask() -> int:
        try:
            return await status_of(gateway_app(catalog, is_loopback=True), scope, body)
        finally:
            await catalog.close()

    assert asyncio.run(ask()) in {200, 204, 400, 401, 403, 404, 405, 413, 415, 502}
