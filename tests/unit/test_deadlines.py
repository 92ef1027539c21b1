"""Two limits of time: how long a server may be silent, and how long all of a call may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from langchain_vllm_local import ChatVLLM
from shared_engine import Engine, InvalidInputError, RateLimitError, RequestTimeoutError, ServerConnectionError
from shared_engine.request import patience
from tests.support.calls import CALLS, HELLO, QUICK, STREAMS, ask
from tests.support.remote_server import RemoteServer, chat_answer, running_server

LIMIT_S = 0.4
SOON_S = 3.0


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def slow_stream(server: RemoteServer, gap_s: float) -> None:
    """A piece every ``gap_s`` seconds, without end."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "text": "a"}]}\n\n')
            await asyncio.sleep(gap_s)

    server.handler = handler


@pytest.mark.parametrize(
    "way", [*QUICK, *(pytest.param(way, marks=pytest.mark.slow) for way in CALLS if way not in QUICK)]
)
def test_a_calls_timeout_ends_it_whatever_it_waits_for(server: RemoteServer, way: str) -> None:
    server.streams(then="hang")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"timeout of {LIMIT_S:g} s is over: it waited .* s for .*{server.url}"):
        ask(way, server.url, {"max_retries": 0}, timeout=LIMIT_S)
    assert LIMIT_S <= time.monotonic() - began < SOON_S
    assert server.aborted.wait(5), "the server still works"


@pytest.mark.slow
def test_langchains_own_name_of_it_is_taken(server: RemoteServer) -> None:
    server.streams(then="hang")
    with pytest.raises(TimeoutError, match=r"timeout of 0\.2 s is over"):
        ChatVLLM(base_url=server.url, model="served").invoke("Hello", request_timeout=0.2)


@pytest.mark.parametrize("way", ["stream_chat", *(pytest.param(way, marks=pytest.mark.slow) for way in STREAMS[1:])])
def test_a_calls_timeout_ends_a_stream_that_flows(server: RemoteServer, way: str) -> None:
    slow_stream(server, 0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"waited .* for more of the answer from"):
        ask(way, server.url, {"max_retries": 0}, timeout=LIMIT_S)
    assert LIMIT_S <= time.monotonic() - began < SOON_S


@pytest.mark.slow
def test_the_setting_is_the_limit_of_silence_and_not_of_the_whole(server: RemoteServer) -> None:
    slow_stream(server, 0.05)
    got = 0
    for _ in Engine(base_url=server.url, timeout=0.3).stream_chat(HELLO):
        got += 1
        if got == 20:  # a second, and no silence
            break
    assert got == 20


@pytest.mark.parametrize("way", ["chat", "stream_chat", "embed", "rerank"])
def test_a_retry_is_within_the_calls_timeout(server: RemoteServer, way: str) -> None:
    server.fails(429, headers={"Retry-After": "60"})
    began = time.monotonic()
    with pytest.raises(RateLimitError):
        ask(way, server.url, {"max_retries": 3}, timeout=2)
    assert time.monotonic() - began < 1.5, "nobody waits for what can't come in time"
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", [0, -1, "soon"])
def test_a_timeout_that_is_none_is_refused(server: RemoteServer, value: Any) -> None:
    engine = Engine(base_url=server.url)
    for asking in (engine.chat, engine.stream_chat):
        with pytest.raises(InvalidInputError, match="timeout"):
            asking(HELLO, timeout=value)


@pytest.mark.parametrize("value", [0, -1])
def test_so_it_is_for_vectors_and_scores(server: RemoteServer, value: Any) -> None:
    engine = Engine(base_url=server.url)
    with pytest.raises(InvalidInputError, match="timeout"):
        engine.embed(["Hello"], timeout=value)
    with pytest.raises(InvalidInputError, match="timeout"):
        engine.rerank("Hello", ["a"], timeout=value)
    assert not server.requests


def test_the_start_that_a_prefix_waits_for_is_within_the_calls_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(engine: Engine) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Engine, "awarmup", never)
    with pytest.raises(RequestTimeoutError, match=r"timeout of 0\.1 s is over"):
        Engine(model="someone/not-here").embed(["Hello"], input_type="query", timeout=0.1)


def test_a_call_in_time_is_none_the_wiser(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    assert engine.chat(HELLO, timeout=20).text == "Hi"
    server.streams("a", "b")
    assert [chunk.text for chunk in engine.stream_chat(HELLO, timeout=20)] == ["a", "b"]
    assert "timeout" not in server.requests[0][1]


# ---- an answer in one piece, of which nothing comes until it is whole


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STEP_S", 0.1)


def works(server: RemoteServer, *, requests: int, steps: list[int], answer_after_s: float | None) -> None:
    """A vLLM that says in its metrics how many requests it has, and how many steps it made, look by look."""

    async def metrics(request: web.Request) -> web.Response:
        made = steps.pop(0) if len(steps) > 1 else steps[0]
        counts = {"num_requests_running": requests, "iteration_tokens_total_count": made}
        return web.Response(text="".join(f'vllm:{name}{{engine="0"}} {value}\n' for name, value in counts.items()))

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60 if answer_after_s is None else answer_after_s)
        return web.json_response(chat_answer())

    server.handler, server.metrics = handler, metrics


@pytest.mark.slow
def test_an_answer_is_waited_for_as_long_as_the_server_works_on_it(server: RemoteServer, short_steps: None) -> None:
    works(server, requests=1, steps=list(range(100)), answer_after_s=1.5)
    assert Engine(base_url=server.url, timeout=0.2, max_retries=0).chat(HELLO).text == "Hi"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requests", "steps"), [(0, list(range(100))), (1, [7])], ids=["it has no request", "it makes no step"]
)
def test_a_server_that_does_not_work_is_not_waited_for(
    server: RemoteServer, requests: int, steps: list[int], short_steps: None
) -> None:
    works(server, requests=requests, steps=steps, answer_after_s=None)
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError, match=rf"{server.url} sent nothing for timeout = 0\.2 s"):
        Engine(base_url=server.url, timeout=0.2, max_retries=0).chat(HELLO)
    assert time.monotonic() - began < SOON_S


@pytest.mark.slow
def test_one_long_step_is_work(server: RemoteServer) -> None:
    works(server, requests=1, steps=[7], answer_after_s=1.0)
    assert Engine(base_url=server.url, timeout=0.2, max_retries=0).chat(HELLO).text == "Hi"


@pytest.mark.slow
def test_a_server_without_metrics_is_not_waited_for(server: RemoteServer) -> None:
    server.streams(then="hang")
    with pytest.raises(RequestTimeoutError, match=r"sent nothing for timeout = 0\.2 s"):
        Engine(base_url=server.url, timeout=0.2, max_retries=0).generate("Hello", max_tokens=5)
    assert server.aborted.wait(5)


@pytest.mark.slow
def test_a_call_that_is_cancelled_while_its_server_is_looked_at_leaves_nothing(
    server: RemoteServer, short_steps: None
) -> None:
    works(server, requests=1, steps=list(range(1000)), answer_after_s=None)

    async def cancelled() -> None:
        task = asyncio.ensure_future(Engine(base_url=server.url, timeout=0.1).achat(HELLO))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(5):  # what looked at the server hears of it, one after the other
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(cancelled())


def test_what_was_cut_says_after_how_long(server: RemoteServer) -> None:
    server.streams("a", then="cut")
    with pytest.raises(ServerConnectionError, match=rf"{server.url} closed the connection before .*, 0\.\d s after"):
        list(Engine(base_url=server.url, max_retries=0).stream_chat(HELLO))


@pytest.mark.slow
async def test_hundreds_that_wait_share_one_look_at_the_server(server: RemoteServer) -> None:
    looks = 0
    works(server, requests=1, steps=list(range(1000)), answer_after_s=1.0)
    metrics = server.metrics

    async def counting(request: web.Request) -> web.StreamResponse:
        nonlocal looks
        looks += 1
        return await metrics(request)

    server.metrics = counting
    engine = Engine(base_url=server.url, model="served", timeout=0.5)
    answers = await asyncio.gather(*(engine.achat(HELLO) for _ in range(100)))
    assert {answer.text for answer in answers} == {"Hi"}
    assert 1 <= looks <= 3
