"""A fleet's other routes than chat, and requests that are left: each moves to another server, and ends at its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from aiohttp import web

from shared_engine import Engine
from shared_engine.request import fleet, retry
from tests.support.remote_server import RemoteServer, running_app, running_server
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "embed": {"data": [{"index": 0, "embedding": [0.5, 0.5]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}},
    "rerank": {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"total_tokens": 3}},
}
CALLS: dict[str, Callable[[Engine], Any]] = {
    "embed": lambda engine: engine.embed(["Hello"]).embeddings,
    "rerank": lambda engine: [each.index for each in engine.rerank("Hello", ["there"]).results],
}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RemoteServer]]:
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 0.01)
    monkeypatch.setattr(fleet, "_fleets", {})
    with ExitStack() as stack:
        yield [stack.enter_context(running_server()) for _ in range(2)]


def engine_of(servers: list[RemoteServer]) -> Engine:
    return Engine(base_url=[server.url for server in servers], model="served")


@pytest.mark.parametrize("name", CALLS)
def test_embeddings_and_scores_are_shared_and_move_to_another_server(servers: list[RemoteServer], name: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response({"id": "1", "model": "served", **BODIES[name]})

    for server in servers:
        server.handler = answer
    engine = engine_of(servers)
    found = [CALLS[name](engine) for _ in range(6)]
    assert [len(server.requests) for server in servers] == [3, 3]
    servers[0].fails(503)
    assert [CALLS[name](engine) for _ in range(6)] == found


@pytest.mark.slow
def test_an_openai_clients_responses_move_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setattr(fleet, "_fleets", {})
    asked: list[str] = []

    def app(name: str, status: int) -> web.Application:
        async def answer(request: web.Request) -> web.StreamResponse:
            asked.append(name)
            body = {
                "id": "resp_1",
                "object": "response",
                "created_at": 1,
                "model": "m",
                "output": [],
                "status": "completed",
            }
            return web.json_response(body if status == 200 else {"error": {"message": "no"}}, status=status)

        made = web.Application()
        made.router.add_post("/v1/responses", answer)
        return made

    with (
        running_app(app("busy", 503)) as busy,
        running_app(app("well", 200)) as well,
        Engine(base_url=[busy, well], model="m").openai_client() as client,
    ):
        assert [client.responses.create(model="m", input="Hello").status for _ in range(3)] == ["completed"] * 3
    assert asked.count("well") == 3
    assert asked.count("busy") == 1


def test_a_server_that_says_when_to_come_again_gets_nothing_of_an_openai_clients_before(
    servers: list[RemoteServer],
) -> None:
    pytest.importorskip("openai")
    servers[0].fails(429, headers={"Retry-After": "30"})
    engine = engine_of(servers)
    client: Any = engine.openai_client()
    for number in range(64):  # each server is the preferred one of about half
        client.chat.completions.create(model="served", messages=[{"role": "user", "content": f"question {number}"}])
    assert len(servers[0].requests) == 1
    busy = engine.fleet.pool.members[servers[0].url]
    assert busy.out_until - time.monotonic() > 20


def in_flight(engine: Engine) -> int:
    return sum(member.in_flight for member in engine.fleet.pool.members.values())


def test_leaving_a_fleets_stream_ends_it_at_its_server(servers: list[RemoteServer]) -> None:
    for server in servers:
        server.streams("Hi", then="hang")
    engine = engine_of(servers)
    pieces = engine.stream_chat(HELLO)
    assert next(pieces).text == "Hi"
    assert in_flight(engine) == 1
    pieces.close()
    wait_until(lambda: any(server.aborted.is_set() for server in servers), 10, "the server to see it")
    assert in_flight(engine) == 0
    assert sum(len(server.requests) for server in servers) == 1


async def test_cancelling_a_fleets_request_ends_it_at_its_server(servers: list[RemoteServer]) -> None:
    asked = asyncio.Event()

    def hanging(server: RemoteServer) -> Callable[[web.Request], Any]:
        loop = asyncio.get_running_loop()

        async def answer(_: web.Request) -> web.StreamResponse:
            loop.call_soon_threadsafe(asked.set)
            try:
                await asyncio.Event().wait()
            finally:
                server.aborted.set()
            raise AssertionError

        return answer

    for server in servers:
        server.handler = hanging(server)
    engine = engine_of(servers)
    call = asyncio.create_task(engine.achat(HELLO))
    await asyncio.wait_for(asked.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    seen = [server.aborted for server in servers]
    await asyncio.to_thread(wait_until, lambda: any(each.is_set() for each in seen), 10, "the server to see it")
    assert in_flight(engine) == 0
    assert sum(len(server.requests) for server in servers) == 1
