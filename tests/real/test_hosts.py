"""Where apps put an engine: notebooks, web servers, threads and event loops of all kinds."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.in_flight import ATTEMPTS, HELLO, LONG, SHORT, is_cut_short, running, wait_quiet
from tests.support.notebooks import cell, kernel
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def engine(quiet_engine: Engine) -> Engine:
    return quiet_engine


# ---- notebooks

CELL = """
from shared_engine import Engine
HELLO, SHORT, LONG = {HELLO!r}, {SHORT!r}, {LONG!r}
engine = Engine(**{settings!r})
"""


def test_a_notebook_waits_awaits_streams_and_can_be_interrupted(
    tiny_chat: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    with kernel(tmp_path) as (manager, client):
        code = CELL.format(settings=tiny_chat, HELLO=HELLO, SHORT=SHORT, LONG=LONG)
        assert cell(client, code) == ("", "")
        answer = ("", "Hello! How\n")
        assert cell(client, "print(engine.chat(HELLO, **SHORT).text)") == answer
        assert cell(client, "print((await engine.achat(HELLO, **SHORT)).text)") == answer
        assert cell(client, "print(''.join(c.text for c in engine.stream_chat(HELLO, **SHORT)))") == answer
        assert cell(client, "print(''.join([c.text async for c in engine.astream_chat(HELLO, **SHORT)]))") == answer

        for endless in (
            "while True: engine.chat(HELLO, **LONG)",
            "while True: await engine.achat(HELLO, **LONG)",
            "while True: list(engine.stream_chat(HELLO, **LONG))",
        ):
            # Jupyter aborts what arrives just after the reply of a cell that failed, unless it is told not to.
            asked = client.execute(endless, stop_on_error=False)
            wait_until(lambda: running(engine) > 0, 30, "the request to run")
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=30)
            assert reply["parent_header"]["msg_id"] == asked
            assert reply["content"]["ename"] in ("KeyboardInterrupt", "CancelledError")
            assert cell(client, "print(engine.chat(HELLO, **SHORT).text)") == answer
            wait_quiet(engine)
        assert cell(client, "print((await engine.achat(HELLO, **SHORT)).text)") == answer


# ---- web servers


@contextmanager
def web_app(engine: Engine) -> Iterator[Callable[[str], http.client.HTTPResponse]]:
    """FastAPI under uvicorn; yields what asks for a path."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    from langchain_vllm_local import ChatVLLM

    app = FastAPI()
    model = ChatVLLM(**engine.settings.model_dump(exclude_unset=True), **SHORT)

    async def asynchronous() -> Any:
        return (await engine.achat(HELLO, **SHORT)).text

    async def langchain() -> Any:
        return (await model.ainvoke("Hello")).text

    def in_threadpool() -> Any:
        return engine.chat(HELLO, **SHORT).text

    async def sync_in_the_loop() -> Any:  # blocks the server's loop, as any sync call there does, but ends
        return engine.chat(HELLO, **SHORT).text

    async def stream() -> Any:
        async def pieces() -> Any:
            async for chunk in engine.astream_chat(HELLO, **LONG):
                yield chunk.text

        return StreamingResponse(pieces())

    for handler in (asynchronous, langchain, in_threadpool, sync_in_the_loop, stream):
        app.get(f"/{handler.__name__}")(handler)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def get(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", f"/{path}", headers={"Connection": "close"})
            return connection.getresponse()

        try:
            wait_until(lambda: server.started, 10, "uvicorn")
            yield get
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def test_a_web_app_answers_many_at_once_from_all_kinds_of_handlers(engine: Engine) -> None:
    paths = ["asynchronous", "langchain", "in_threadpool", "sync_in_the_loop"]

    def text_of(path: str) -> tuple[int, str]:
        with get(path) as response:
            return response.status, json.loads(response.read())

    with web_app(engine) as get, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text_of, paths * 16)) == [(200, "Hello! How")] * 64


def test_a_web_client_that_leaves_a_stream_ends_the_request_in_vllm(engine: Engine) -> None:
    def leave_early() -> None:
        with get("stream") as response:
            assert response.read1(1)

    with web_app(engine) as get:
        assert any(is_cut_short(engine, leave_early) for _ in range(ATTEMPTS))


# ---- threads and loops


def test_loops_that_come_and_go_in_several_threads_are_not_kept(engine: Engine) -> None:
    seen: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def several() -> set[str]:
        seen.append(weakref.ref(asyncio.get_running_loop()))
        return {answer.text for answer in await asyncio.gather(*(engine.achat(HELLO, **SHORT) for _ in range(3)))}

    def runs(_: int) -> list[set[str]]:
        return [asyncio.run(several()) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(runs, range(2))) == [[{"Hello! How"}] * 4] * 2
    asyncio.run(several())
    gc.collect()
    assert len(seen) == 9
    assert sum(each() is not None for each in seen) <= 1, "at most the last loop's client waits for the next loop"
