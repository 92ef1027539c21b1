"""Engine.stats(): how each way of a request's end is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from shared_engine import ContextLengthError, Engine, EngineStats, RequestError
from shared_engine.request import lifecycle, retry
from shared_engine.request.forwarding import ForwardedRequest, Forwarding
from shared_engine.stats import RequestStats
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
TOO_LONG = "This model's maximum context length is 8 tokens. However, your request has 9 input tokens."


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 0.01)
    with running_server() as server:
        yield server


@pytest.fixture
def engine(server: RemoteServer) -> Engine:
    return Engine(base_url=server.url, model="served")


def requests_of(engine: Engine) -> RequestStats:
    return engine.stats().requests


def test_nothing_was_asked_yet(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "alert_counts", dict)
    assert engine.stats() == EngineStats(requests=RequestStats())


def test_answers_of_every_kind_are_counted_with_their_tokens(server: RemoteServer, engine: Engine) -> None:
    usage = chat_answer()["usage"]
    engine.chat(HELLO)
    engine.chat_batch([HELLO] * 3)
    server.streams("Hel", "lo")
    assert "".join(chunk.text for chunk in engine.stream_chat(HELLO)) == "Hello"
    stats = requests_of(engine)
    assert (stats.requests, stats.successes, stats.cancelled, stats.errors) == (5, 5, 0, {})
    assert stats.prompt_tokens == 4 * usage["prompt_tokens"]
    assert stats.completion_tokens == 4 * usage["completion_tokens"]
    assert (stats.latency.count, stats.time_to_first_token.count, stats.wait.count) == (5, 1, 5)
    assert stats.latency.p50_s is not None
    assert 0 < stats.latency.p50_s < 5


@pytest.mark.parametrize(
    ("route", "answer", "tokens"),
    [
        ("/v1/chat/completions", chat_answer(), (3, 1, 0)),
        (
            "/v1/embeddings",
            {"data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": None}},
            (7, 0, 0),
        ),
        ("/v1/rerank", {"id": "a", "results": [], "usage": {"total_tokens": 9}}, (9, 0, 0)),
        ("/v1/responses", {"id": "a", "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}}, (5, 2, 0)),
        ("/v1/messages", {"id": "a", "usage": {"input_tokens": 5, "output_tokens": 2}}, (5, 2, 0)),
        (
            "/v1/completions",
            {"usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}},
            (5, 2, 4),
        ),
        ("/v1/embeddings", {"data": [], "usage": None}, (0, 0, 0)),
        ("/v1/embeddings", {"data": [], "usage": "none"}, (0, 0, 0)),
        ("/v1/rerank", [{"index": 0}], (0, 0, 0)),
    ],
)
async def test_tokens_of_answers_that_are_passed_on_are_counted(
    server: RemoteServer, engine: Engine, route: str, answer: object, tokens: tuple[int, int, int]
) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(answer)

    server.handler = handler
    engine.reset_stats()
    forwarding = Forwarding(engine._requests.endpoint, engine.settings)
    passed_on = await forwarding.forward(ForwardedRequest("POST", route, (), b'{"model": "served"}'))
    assert [piece async for piece in passed_on]
    await engine.aclose()
    stats = requests_of(engine)
    assert (stats.successes, stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens) == (1, *tokens)


def test_counts_of_tokens_and_looks_are_no_requests(engine: Engine) -> None:
    engine.count_tokens("Hello")
    engine.warmup()
    engine.status()
    assert requests_of(engine) == RequestStats()


def test_errors_are_counted_by_class_and_tries_as_retries(server: RemoteServer, engine: Engine) -> None:
    server.fails(503, times=2)
    engine.chat(HELLO)
    server.fails(400, message=TOO_LONG)
    with pytest.raises(ContextLengthError):
        engine.chat(HELLO)
    server.fails(404, message="no such thing")
    with pytest.raises(RequestError) as raised:
        engine.chat(HELLO)
    with pytest.raises(RequestError):
        list(engine.stream_chat(HELLO))
    stats = requests_of(engine)
    assert (stats.requests, stats.successes, stats.retries, stats.context_overflows) == (4, 1, 2, 1)
    assert stats.errors == {"ContextLengthError": 1, type(raised.value).__name__: 2}


def test_a_stream_that_breaks_off_is_an_error_and_one_left_early_is_cancelled(
    server: RemoteServer, engine: Engine
) -> None:
    server.streams("Hello", then="cut")
    with pytest.raises(RequestError):
        list(engine.stream_chat(HELLO))
    server.streams("Hello", then="hang")
    stream = engine.stream_chat(HELLO)
    assert next(stream).text == "Hello"
    stream.close()
    assert server.aborted.wait(5)
    stats = requests_of(engine)
    assert (stats.requests, stats.successes, stats.cancelled, sum(stats.errors.values())) == (2, 0, 1, 1)


@pytest.mark.slow
async def test_a_cancelled_call_is_counted_as_such(server: RemoteServer, engine: Engine) -> None:
    async def slowly(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)
        return web.json_response(chat_answer())

    server.handler = slowly
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.achat(HELLO), 0.2)
    stats = (await engine.astats()).requests
    assert (stats.requests, stats.cancelled) == (1, 1)
    await engine.aclose()


def test_objects_with_equal_settings_share_their_numbers_and_others_do_not(
    server: RemoteServer, engine: Engine
) -> None:
    engine.chat(HELLO)
    assert requests_of(Engine(base_url=server.url, model="served", timeout=7)).requests == 1
    assert requests_of(Engine(base_url=server.url, model="another")).requests == 0
    engine.reset_stats()
    assert requests_of(engine) == RequestStats()


def test_a_remote_servers_own_counters_are_there_and_no_life(server: RemoteServer, engine: Engine) -> None:
    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(
            text='vllm:generation_tokens_total{engine="0"} 5.0\nvllm:generation_tokens_total{engine="1"} 2.0\n'
            'vllm:num_requests_running{engine="0"} 1.0\nvllm:generation_tokens_created{engine="0"} 1.7e9\n'
        )

    server.metrics = metrics
    stats = engine.stats()
    assert stats.counters == {"generation_tokens": 7.0}
    assert stats.life is None
    assert engine.metrics() == {"generation_tokens": 7.0, "num_requests_running": 1.0}


def test_it_is_plain_json(engine: Engine) -> None:
    engine.chat(HELLO)
    written: dict[str, Any] = json.loads(json.dumps(engine.stats().to_json()))
    assert written["requests"]["successes"] == 1
    assert set(written["requests"]["latency"]) == {"count", "sum_s", "p50_s", "p95_s", "p99_s", "max_s"}
