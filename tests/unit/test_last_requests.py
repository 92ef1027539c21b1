"""Requests while the interpreter ends: an answer as long as threads run, else an error at once, never a hang."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiohttp import web

from tests.support.processes import end_of, run_app
from tests.support.remote_server import RemoteServer, running_server

SLOW = pytest.mark.slow
WAYS = [
    "chat", "chat_batch", "stream", "achat", "astream",
    pytest.param("langchain_batch", marks=SLOW), pytest.param("llama_index_batch", marks=SLOW),
]  # fmt: skip


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.streams("Hi", "Hi")
        stream, whole = server.handler, server.answer

        async def either(request: web.Request) -> web.StreamResponse:
            return await (stream if (await request.json()).get("stream") else whole)(request)

        server.handler = either
        yield server


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", ["del_unused", "del", "atexit", "daemon_thread"])
def test_a_last_request_never_hangs(server: RemoteServer, way: str, moment: str) -> None:
    if moment == "del_unused" and way in ("achat", "astream"):
        pytest.skip("asyncio.run itself fails there")
    status, out, err = end_of(run_app("last_requests", server.url, way, moment), 20)
    assert (status, err) == (0, "")
    if moment.startswith("del"):
        assert out == "EngineError"
    elif moment == "atexit":
        assert out in ("Hi", "EngineError")
    else:
        assert out == ""
