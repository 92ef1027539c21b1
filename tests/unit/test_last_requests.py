"""Requests while the interpreter ends: an answer as long as threads run, else an error at once, never a hang."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from signal import SIGABRT, SIGSEGV

import pytest
from aiohttp import web

from tests.support.processes import end_of, run_app
from tests.support.remote_server import RemoteServer, running_server

SLOW = pytest.mark.slow
QUICK = [("chat", "del"), ("stream", "del")]
ALL = [
    (way, moment)
    for way in ("chat", "chat_batch", "stream", "achat", "astream", "langchain_batch", "llama_index_batch")
    for moment in ("del_unused", "del", "atexit", "daemon_thread")
    if moment != "del_unused" or way not in ("achat", "astream")  # asyncio.run itself fails there
]

ENDS_OF_A_DAEMON_THREAD_IN_PYDANTIC = {0} if sys.version_info >= (3, 14) else {0, -SIGABRT, -SIGSEGV}
"""Python before 3.14 ends daemon threads by unwinding them, and Pydantic's Rust, if it is on the stack, aborts or
crashes then; without any code of ours a loop that only builds models does so in half of all runs
(python/cpython#87135).
"""


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.streams("Hi", "Hi")
        stream, whole = server.handler, server.answer

        async def either(request: web.Request) -> web.StreamResponse:
            return await (stream if (await request.json()).get("stream") else whole)(request)

        server.handler = either
        yield server


@pytest.mark.parametrize(
    ("way", "moment"), [*QUICK, *(pytest.param(*each, marks=SLOW) for each in ALL if each not in QUICK)]
)
@pytest.mark.slow
def test_a_last_request_never_hangs(server: RemoteServer, way: str, moment: str) -> None:
    status, out, err = end_of(run_app("last_requests", server.url, way, moment), 20)
    if moment == "daemon_thread" and way in ("langchain_batch", "llama_index_batch"):
        assert status in ENDS_OF_A_DAEMON_THREAD_IN_PYDANTIC
        assert out == ""
        return
    assert (status, err) == (0, "")
    if moment.startswith("del"):
        assert out == "EngineError"
    elif moment == "atexit":
        assert out in ("Hi", "EngineError")
    else:
        assert out == ""
