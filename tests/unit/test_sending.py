"""One request to an endpoint: retries send the same bytes, errors are explained, and a closed stream holds nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, cast

import pytest
from aiohttp import web

from shared_engine import (
    ContextLengthError,
    Engine,
    EngineBusyError,
    GenerationChunk,
    GenerationParams,
    RateLimitError,
    RequestError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.request.bodies import chat_request, completion_request
from shared_engine.request.client import Client, HttpClient, retry_after_s
from shared_engine.request.endpoint import Connection, Route
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.sending import MAX_COUNTED_BYTES, Requests
from shared_engine.request.tally import EngineName
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = chat_request(HELLO, GenerationParams())
STREAM = chat_request(HELLO, GenerationParams(), stream=True)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


class LeasedEndpoint(Route):
    """Counts its leases, as a local endpoint would hold them."""

    max_model_len: int | None = None
    sends_done = True
    awaited = "a lease"
    name = EngineName("model", "key")

    def __init__(self, client: Any) -> None:
        self.client = client
        self.held = 0
        self.start = 1
        self.explained: list[RequestError] = []

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        self.held += 1
        return Connection(self.client, f"model-{self.start}", self.start)

    def counted_by(self, _: Connection | None) -> EngineName:
        return self.name

    def for_request(self, *_: object) -> LeasedEndpoint:
        return self

    def release(self, connection: Connection) -> None:
        self.held -= 1

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        self.explained.append(error)
        return EngineBusyError("explained") if error.status == 503 else error


class ScriptedClient:
    """Answers each request with the next of its script, and keeps what was sent."""

    where = "http://scripted"

    def __init__(self, *script: bytes | Exception) -> None:
        self._script = list(script)
        self.sent: list[tuple[str, bytes]] = []

    async def request(self, method: str, path: str, body: bytes = b"", timeout: float | None = None) -> bytes:
        self.sent.append((path, body))
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def requests_to(endpoint: LeasedEndpoint, max_retries: int = 2) -> Requests:
    return Requests(cast("Any", endpoint), 10, max_retries)


ANSWER = json.dumps(chat_answer()).encode()
MODELS = b'{"data": [{"id": "model-1", "max_model_len": 2048}]}'


@pytest.mark.slow
async def test_a_retry_sends_the_same_bytes() -> None:
    client = ScriptedClient(ServerConnectionError("cut"), ServerConnectionError("cut"), ANSWER)
    endpoint = LeasedEndpoint(client)
    assert (await requests_to(endpoint).generate(CHAT)).text == "Hi"
    assert [body for _, body in client.sent] == [CHAT.for_server("model-1")] * 3
    assert endpoint.held == 0


async def test_the_servers_limit_is_asked_for_once_for_each_start() -> None:
    client = ScriptedClient(MODELS, ANSWER, ANSWER, MODELS.replace(b"2048", b"100").replace(b"-1", b"-2"), ANSWER)
    endpoint = LeasedEndpoint(client)
    requests = requests_to(endpoint)
    text = completion_request("Hello", GenerationParams())
    for start in (1, 1, 2):
        endpoint.start = start
        await requests.generate(text)
    limits = [json.loads(body)["max_tokens"] for path, body in client.sent if path == text.path]
    assert limits == [2048, 2048, 100]


OTHER: dict[str, dict[str, Any]] = {"model": {"model": "small"}, "extra_body": {"extra_body": {"model": "small"}}}


@pytest.mark.parametrize("way", OTHER)
@pytest.mark.parametrize("order", [(0, 1, 0, 1), (1, 0, 1, 0)])
def test_each_model_of_a_server_has_a_limit_of_its_own(server: RemoteServer, way: str, order: tuple[int, ...]) -> None:
    server.models.append({"id": "small", "max_model_len": 100})
    engine = Engine(base_url=server.url, model="served")
    for is_other in order:
        engine.generate("Hello", **(OTHER[way] if is_other else {}))
        assert engine.context_window in ((None, 2048) if is_other else (2048,))
    assert [body["max_tokens"] for _, body in server.requests] == [100 if is_other else 2048 for is_other in order]


def test_a_refusal_tells_the_limit_of_the_model_that_was_asked(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served")
    words = "This model's maximum context length is 100 tokens. However, your request has 150 input tokens."
    server.fails(400, message=words)
    with pytest.raises(ContextLengthError) as caught:
        engine.chat(HELLO, model="small")
    assert caught.value.max_model_len == 100
    assert engine.context_window is None
    with pytest.raises(ContextLengthError):
        engine.chat(HELLO)
    assert engine.context_window == 100


async def test_an_error_is_explained_by_the_endpoint_and_raised_from_what_the_server_said() -> None:
    refusal = ServerError("no room", 503)
    endpoint = LeasedEndpoint(ScriptedClient(refusal))
    with pytest.raises(EngineBusyError, match="explained") as caught:
        await requests_to(endpoint, max_retries=0).generate(CHAT)
    assert caught.value.__cause__ is refusal
    assert endpoint.held == 0


@pytest.mark.parametrize(("length", "is_counted"), [(100, True), (2 * MAX_COUNTED_BYTES, False)])
async def test_a_prompt_that_is_too_long_is_counted_only_where_that_is_quick(length: int, is_counted: bool) -> None:
    """/tokenize holds up everybody else in the server."""
    refusal = ContextLengthError("too long", 400, 10)
    client = ScriptedClient(refusal, *([b'{"count": 26}'] if is_counted else []))
    request = chat_request([{"role": "user", "content": "a b " * (length // 4)}], GenerationParams())
    with pytest.raises(ContextLengthError) as caught:
        await requests_to(LeasedEndpoint(client)).generate(request)
    assert caught.value.prompt_tokens == (26 if is_counted else None)
    assert [path for path, _ in client.sent] == ["/v1/chat/completions", "/tokenize"][: 1 + is_counted]


async def test_of_a_batch_that_is_refused_one_prompt_is_counted_at_a_time(server: RemoteServer) -> None:
    server.fails(400, message="This model's maximum context length is 10 tokens.")
    engine = Engine(base_url=server.url, model="served")
    outcomes = await engine.agenerate_batch(["a " * 20] * 50, max_tokens=1, return_exceptions=True)
    counts = [outcome.prompt_tokens for outcome in outcomes if isinstance(outcome, ContextLengthError)]
    assert len(counts) == 50
    assert 1 <= counts.count(22) < 50


# ---- Retry-After


@pytest.mark.parametrize(
    ("header", "milliseconds", "asked"),
    [
        ("2", "", 2),
        (" 0 ", "", 0),
        ("1.5", "", 1.5),
        ("Sat, 01 Jan 2000 00:00:00 GMT", "", 0),
        ("Sat, 01 Jan 2000 00:00:00 -0000", "", 0),
        ("2", "1500", 1.5),
        ("2", "soon", 2),
        ("", "250", 0.25),
    ],
)
def test_a_retry_after_is_seconds_milliseconds_or_a_date(header: str, milliseconds: str, asked: float) -> None:
    assert retry_after_s(header, milliseconds) == asked


def test_a_date_to_come_and_what_is_no_retry_after() -> None:
    asked = retry_after_s(formatdate(time.time() + 60, usegmt=True))
    assert asked is not None
    assert 55 < asked <= 60
    assert [retry_after_s(header) for header in ("", "soon", "-1", "inf", "nan")] == [None] * 5


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_says_when_to_come_again_is_not_asked_before(server: RemoteServer, stream: bool) -> None:
    server.fails(429, times=1, headers={"Retry-After": "1"})
    began = time.monotonic()
    engine = Engine(base_url=server.url, model="served")
    if stream:
        refuse = server.handler
        server.streams("Hi")
        server.handler = first_then(refuse, server.handler)
        assert [chunk.text for chunk in engine.stream_chat(HELLO)] == ["Hi"]
    else:
        assert engine.chat(HELLO).text == "Hi"
    assert 1 <= time.monotonic() - began < 3
    assert len(server.requests) == 2


def first_then(first: Any, then: Any) -> Any:
    handlers = [first]

    async def handler(request: Any) -> Any:
        return await (handlers.pop() if handlers else then)(request)

    return handler


async def test_a_refusal_tells_its_retry_after(server: RemoteServer) -> None:
    server.fails(429, headers={"Retry-After": "7"})
    with pytest.raises(RateLimitError) as caught:
        await Engine(base_url=server.url, model="served", max_retries=0).achat(HELLO)
    assert caught.value.retry_after_s == 7


# ---- the end of a stream


@asynccontextmanager
async def without_garbage_collection() -> AsyncIterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def begun_stream(url: str) -> tuple[LeasedEndpoint, AsyncGenerator[GenerationChunk, None], Client]:
    client = HttpClient(url)
    endpoint = LeasedEndpoint(client)
    stream = requests_to(endpoint).stream(STREAM)
    assert (await anext(stream)).text == "a"
    assert endpoint.held == 1
    return endpoint, stream, client


@pytest.mark.slow
async def test_a_stream_that_is_closed_holds_no_lease_and_the_server_sees_it(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    async with without_garbage_collection():
        endpoint, stream, client = await begun_stream(server.url)
        await stream.aclose()
        assert endpoint.held == 0
        assert await asyncio.to_thread(server.aborted.wait, 5), "the server still writes"
    await client.close()


@pytest.mark.slow
async def test_a_stream_whose_task_is_cancelled_holds_no_lease_and_the_server_sees_it(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    async with without_garbage_collection():
        endpoint, stream, client = await begun_stream(server.url)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert endpoint.held == 0
        assert await asyncio.to_thread(server.aborted.wait, 5), "the server still writes"
    await client.close()


@pytest.mark.parametrize("end", ["done", "cut"])
async def test_a_stream_that_ends_holds_no_lease(server: RemoteServer, end: str) -> None:
    server.streams("a", then=end)
    endpoint, stream, client = await begun_stream(server.url)
    try:
        assert [chunk async for chunk in stream] == []
        assert end == "done"
    except ServerConnectionError:
        assert end == "cut"
    assert endpoint.held == 0
    await client.close()


async def test_of_an_engine_of_ours_done_must_come(server: RemoteServer) -> None:
    """vLLM sends it after the usage: without it the answer was cut off there."""

    async def without_done(request: web.Request) -> web.Response:
        choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
        return web.Response(text=f"data: {json.dumps({'choices': [choice]})}\n\n", content_type="text/event-stream")

    server.handler = without_done
    endpoint, stream, client = await begun_stream(server.url)
    with pytest.raises(ServerConnectionError, match=r"\[DONE\] did not come"):
        await anext(stream)
    assert [str(error) for error in endpoint.explained] == [
        f"{server.url} ended the answer before it was whole: [DONE] did not come"
    ]
    assert endpoint.held == 0
    endpoint.sends_done = False
    assert [chunk.text async for chunk in requests_to(endpoint).stream(STREAM)] == ["a"]
    await client.close()
