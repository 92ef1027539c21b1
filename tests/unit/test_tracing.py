"""Spans of requests, with OpenTelemetry's own SDK; and nothing without it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared_engine import Engine, RequestError
from shared_engine.request import retry, tracing
from shared_engine.request.forwarding import ForwardedRequest, Forwarding
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "a secret question"}]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an app's provider would export; the process-wide one is left alone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing._tracer.cache_clear()
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 0.01)
    yield exporter
    tracing._tracer.cache_clear()


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def engine(server: RemoteServer) -> Engine:
    return Engine(base_url=server.url, model="served")


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


def test_a_request_is_a_client_span_by_the_conventions(
    spans: InMemorySpanExporter, server: RemoteServer, engine: Engine
) -> None:
    engine.chat(HELLO, max_tokens=7, temperature=0.5, stop="x", seed=3)
    span, usage = only(spans), chat_answer()["usage"]
    assert (span.name, span.kind) == ("chat served", trace.SpanKind.CLIENT)
    assert span.status.status_code is trace.StatusCode.UNSET
    port = int(server.url.rpartition(":")[2])
    assert dict(span.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "served",
        "server.address": "127.0.0.1",
        "server.port": port,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.seed": 3,
        "vllm_local.engine.start_number": 0,
        "gen_ai.response.id": chat_answer()["id"],
        "gen_ai.response.model": chat_answer()["model"],
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }
    assert [event.name for event in span.events] == ["vllm_local.engine.ready"]


def test_the_servers_span_can_join(spans: InMemorySpanExporter, server: RemoteServer, engine: Engine) -> None:
    with trace.get_tracer("app").start_as_current_span("outer") as outer:
        engine.chat(HELLO)
        list(engine.stream_chat(HELLO))
        asyncio.run(engine.achat(HELLO))
    ours = [span for span in spans.get_finished_spans() if span.name == "chat served"]
    assert len(ours) == 3
    assert {span.parent and span.parent.span_id for span in ours} == {outer.get_span_context().span_id}
    sent = [headers["traceparent"].split("-")[1:3] for headers, _ in server.requests]
    assert sent == [
        [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"] for span in ours if span.context is not None
    ]


def test_a_stream_has_the_time_to_its_first_piece(
    spans: InMemorySpanExporter, server: RemoteServer, engine: Engine
) -> None:
    server.streams("Hel", "lo")
    list(engine.stream_chat(HELLO))
    attributes = only(spans).attributes or {}
    assert attributes["gen_ai.request.stream"] is True
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    first_s = attributes["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first_s, float)
    assert 0 < first_s < 5


def test_an_error_is_named_and_not_quoted(spans: InMemorySpanExporter, server: RemoteServer, engine: Engine) -> None:
    server.fails(400, message="a secret question is no good")
    with pytest.raises(RequestError) as raised:
        engine.chat(HELLO)
    span = only(spans)
    assert (span.attributes or {})["error.type"] == type(raised.value).__name__
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_tries_again_and_a_stream_that_is_left_are_told(
    spans: InMemorySpanExporter, server: RemoteServer, engine: Engine
) -> None:
    server.fails(503, times=1)
    engine.chat(HELLO)
    names = [event.name for event in only(spans).events]
    assert names == ["vllm_local.engine.ready", "vllm_local.retry", "vllm_local.engine.ready"]
    spans.clear()
    server.streams("Hello", then="hang")
    stream = engine.stream_chat(HELLO)
    next(stream)
    stream.close()
    assert server.aborted.wait(5)
    assert (only(spans).attributes or {})["error.type"] == "cancelled"


@pytest.mark.parametrize("is_asked", [False, True])
def test_prompts_and_answers_only_where_asked(
    spans: InMemorySpanExporter, server: RemoteServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    monkeypatch.setenv(tracing.CAPTURE_VARIABLE, str(is_asked).lower())
    engine.chat(HELLO)
    server.streams("Hel", "lo")
    list(engine.stream_chat(HELLO))
    whole, streamed = spans.get_finished_spans()
    if not is_asked:
        assert "secret" not in whole.to_json() + streamed.to_json()
        return
    for span, text in ((whole, chat_answer()["choices"][0]["message"]["content"]), (streamed, "Hello")):
        attributes = span.attributes or {}
        said = {"role": "user", "parts": [{"type": "text", "content": "a secret question"}]}
        assert json.loads(str(attributes["gen_ai.input.messages"])) == [said]
        answered = {"role": "assistant", "parts": [{"type": "text", "content": text}]}
        assert json.loads(str(attributes["gen_ai.output.messages"])) == [answered]


@pytest.mark.parametrize(
    "body",
    [
        '{"messages": "hi"}', '{"messages": 5}', '{"messages": ["hi", 5]}', '{"messages": [{"role": 5}]}',
        '{"messages": {"role": "user"}, "temperature": {}, "stop": [1]}', '{"messages": null}', "[]", "{",
        '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda body: body[:40],
)  # fmt: skip
def test_what_a_client_sends_wrongly_is_the_servers_to_refuse(
    spans: InMemorySpanExporter, server: RemoteServer, engine: Engine, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setenv(tracing.CAPTURE_VARIABLE, "true")
    server.fails(400)
    forwarding = Forwarding(engine._requests.endpoint, engine.settings)

    async def refused() -> int:
        answer = await forwarding.forward(ForwardedRequest("POST", "/v1/chat/completions", (), body.encode()))
        try:
            return answer.status
        finally:
            await answer.aclose()
            await engine.aclose()

    assert asyncio.run(refused()) in (400, 500), "the tests' server can't read some of them"
    assert only(spans).status.status_code is trace.StatusCode.ERROR


def test_counts_of_tokens_have_no_span(spans: InMemorySpanExporter, engine: Engine) -> None:
    engine.count_tokens("Hello")
    assert not spans.get_finished_spans()


@pytest.mark.slow
def test_an_app_that_does_not_trace_imports_nothing_of_it(server: RemoteServer) -> None:
    code = (
        "import sys; from shared_engine import Engine; "
        f"Engine(base_url={server.url!r}, model='served').chat([{{'role': 'user', 'content': 'Hi'}}]); "
        "sys.exit(any(name.startswith(('opentelemetry', 'prometheus')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60)
    assert done.returncode == 0
