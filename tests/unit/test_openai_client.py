"""openai's own clients on an engine: what they send, how they are answered, and what their errors say."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import openai
import pytest
from aiohttp import web

from shared_engine import Engine, EngineSettings, RequestError, ServerConnectionError, ServerUnreachableError, VLLMError
from shared_engine.request.client import HttpClient
from shared_engine.request.endpoint import Connection, Route
from shared_engine.request.forwarded_answer import ForwardedAnswer
from shared_engine.request.forwarding import ForwardedRequest, Forwarding
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.tally import EngineName
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer, running_server
from tests.support.waiting import wait_until

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def client(server: RemoteServer) -> Iterator[openai.OpenAI]:
    with Engine(base_url=server.url, api_key="secret", default_headers={"X-Tenant": "a"}).openai_client() as client:
        yield client


def ask(client: openai.OpenAI, model: str = "default", **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=HELLO, **options).choices[0].message.content


def stream(client: openai.OpenAI, **options: Any) -> Iterator[str | None]:
    for chunk in client.chat.completions.create(model="default", messages=HELLO, stream=True, **options):
        yield from (choice.delta.content for choice in chunk.choices)


async def stream_async(client: openai.AsyncOpenAI) -> list[str | None]:
    chunks = await client.chat.completions.create(model="default", messages=HELLO, stream=True)
    return [choice.delta.content async for chunk in chunks for choice in chunk.choices]


def ask_by(way: str, engine: Engine) -> None:
    """``sync``, ``stream`` or ``async``, which streams."""
    if way == "async":
        asyncio.run(stream_async(engine.async_openai_client()))
    elif way == "stream":
        list(stream(engine.openai_client()))
    else:
        ask(engine.openai_client())


# ---- what is counted


@pytest.mark.slow
def test_its_requests_are_counted_with_the_engines(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="counted")
    client = engine.openai_client(max_retries=0)
    ask(client)
    server.streams("Hel", "lo")
    assert "".join(text or "" for text in stream(client)) == "Hello"
    server.streams("Hello", then="hang")
    left = client.chat.completions.create(model="default", messages=HELLO, stream=True)
    next(iter(left))
    left.close()
    server.fails(404)
    with pytest.raises(openai.NotFoundError):
        ask(client)
    stats = engine.stats().requests
    assert (stats.requests, stats.successes, stats.cancelled, sum(stats.errors.values())) == (4, 2, 1, 1)


# ---- what is sent


def test_constructing_a_client_asks_nobody_and_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    engine = Engine(model="org/name")
    for made in (engine.openai_client(), engine.async_openai_client()):
        assert made.base_url == "http://vllm-local/v1/"
        assert isinstance(made, openai.OpenAI | openai.AsyncOpenAI)


def test_a_request_goes_out_with_the_engines_own_key_and_headers(server: RemoteServer, client: openai.OpenAI) -> None:
    assert ask(client, extra_headers={"X-Trace": "7"}, extra_query={"version": "1"}, temperature=0.5) == "Hi"
    headers, body = server.requests[-1]
    assert headers["Authorization"] == "Bearer secret"
    assert (headers["X-Tenant"], headers["x-trace"]) == ("a", "7")
    assert server.queries[-1] == {"version": "1"}
    assert body == {"model": "served", "messages": HELLO, "temperature": 0.5}


def test_without_a_key_of_the_engine_none_is_sent(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://nowhere.invalid")
    monkeypatch.setenv("HTTP_PROXY", "http://nowhere.invalid")
    assert ask(Engine(base_url=server.url).openai_client()) == "Hi"
    headers, _ = server.requests[-1]
    assert "Authorization" not in headers
    assert "of-openai" not in str(headers)


def test_another_models_name_is_sent_as_it_is(server: RemoteServer, client: openai.OpenAI) -> None:
    ask(client, model="sql-adapter")
    assert server.requests[-1][1]["model"] == "sql-adapter"


def test_all_names_of_a_local_model_are_the_servers_own() -> None:
    forwarding = Forwarding(_NoEndpoint(), EngineSettings(model="org/name"))  # type: ignore[arg-type]
    for name in ("default", "org/name", "name"):
        body = b'{"model":"%s","stream":true}' % name.encode()
        assert forwarding._body(ForwardedRequest("POST", "/v1/completions", body=body), "served") == (
            b'{"model":"served","stream":true}',
            True,
        )
    for body in (b'{"model":"names"}', b"--boundary", b"", b"[1]"):
        assert forwarding._body(ForwardedRequest("POST", "/v1/completions", body=body), "served") == (body, False)


class _NoEndpoint:
    pass


def test_the_path_of_a_server_behind_a_prefix_is_kept(server: RemoteServer) -> None:
    client = Engine(base_url=f"{server.url}/v1", model="served").openai_client()
    assert [model.id for model in client.models.list()] == ["served"]
    assert str(client.base_url) == f"{server.url}/v1/"


def test_requests_for_another_address_are_refused(server: RemoteServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIConnectionError, match=r"go to http://127.0.0.1:\d+ only, not to http://other/v1/"):
        ask(client.with_options(base_url="http://other/v1"))
    assert server.requests == []


@pytest.mark.parametrize("name", ["api_key", "base_url", "http_client", "websocket_base_url"])
def test_where_requests_go_is_the_engines_to_say(name: str) -> None:
    engine = Engine(model="org/name")
    for make in (engine.openai_client, engine.async_openai_client):
        with pytest.raises(TypeError, match=f"{name}: can't be given"):
            make(**{name: "x"})


def test_other_options_are_openais(server: RemoteServer) -> None:
    client = Engine(base_url=server.url).openai_client(default_headers={"X-App": "b"}, max_retries=7)
    assert client.max_retries == 7
    ask(client)
    assert server.requests[-1][0]["x-app"] == "b"


def test_without_openai_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    for make in (Engine(model="org/name").openai_client, Engine(model="org/name").async_openai_client):
        with pytest.raises(ImportError, match=r"openai is not installed here: pip install 'vllm-local\[openai\]'"):
            make()


def test_an_openai_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "__version__", "1.99.0")
    with pytest.raises(ImportError, match=r"openai 1\.99\.0 is too old"):
        Engine(model="org/name").openai_client()


@pytest.mark.slow
def test_openai_is_imported_by_the_first_client_only() -> None:
    code = "from shared_engine import Engine; import sys; Engine(model='a/b'); assert 'openai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


# ---- answers


def test_a_stream_comes_piece_by_piece(server: RemoteServer, client: openai.OpenAI) -> None:
    server.streams("a", "b", then="hang")
    with client.chat.completions.create(model="default", messages=HELLO, stream=True) as chunks:
        assert [next(chunks).choices[0].delta.content for _ in "ab"] == ["a", "b"]
        assert not server.aborted.is_set()
    assert server.aborted.wait(5), "the server sees that nobody reads"


async def test_asynchronous_clients_answer_on_any_loop(server: RemoteServer) -> None:
    client = Engine(base_url=server.url).async_openai_client()
    server.streams("a", "b")
    assert await stream_async(client) == ["a", "b"]
    loops = [asyncio.to_thread(asyncio.run, stream_async(client)) for _ in range(3)]
    assert await asyncio.gather(*loops) == [["a", "b"]] * 3
    await client.close()
    assert client.is_closed()


async def test_a_cancelled_call_ends_its_request(server: RemoteServer) -> None:
    server.streams(then="hang")
    call = asyncio.create_task(stream_async(Engine(base_url=server.url).async_openai_client()))
    while not server.requests:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(server.aborted.wait, 5)


@pytest.mark.slow
async def test_an_answer_that_is_dropped_gives_its_lease_back(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    endpoint = LeasedEndpoint(server.url)
    forwarding = Forwarding(endpoint, EngineSettings(base_url=server.url))  # type: ignore[arg-type]
    body = b'{"model":"default","stream":true}'
    answers = [await forwarding.forward(ForwardedRequest("POST", "/v1/completions", body=body)) for _ in range(3)]
    assert endpoint.held == 3
    answers[0].close()
    answers[0].close()
    assert endpoint.held == 2
    await asyncio.to_thread(answers[1].close)
    await asyncio.sleep(0)
    assert endpoint.held == 1
    answers.clear()
    gc.collect()
    assert endpoint.held == 1, "the collector may run where this thread holds a lease's lock"
    await asyncio.sleep(0)
    assert endpoint.held == 0
    assert await asyncio.to_thread(server.aborted.wait, 5)
    await endpoint.client.close()


@pytest.mark.parametrize("then", ["done", "cut"])
async def test_a_stream_that_has_ended_gives_its_lease_back(server: RemoteServer, then: str) -> None:
    server.streams("a", then=then)
    endpoint = LeasedEndpoint(server.url)
    forwarding = Forwarding(endpoint, EngineSettings(base_url=server.url, max_retries=0))  # type: ignore[arg-type]
    answer = await forwarding.forward(ForwardedRequest("POST", "/v1/completions", body=b'{"stream":true}'))
    assert (await read(answer) is None) == (then == "done")
    assert endpoint.held == 0
    await endpoint.client.close()


async def read(answer: AsyncIterator[bytes]) -> Exception | None:
    try:
        async for _ in answer:
            pass
    except ServerConnectionError as exc:
        return exc
    return None


class LeasedEndpoint(Route):
    """Counts its leases, as a local endpoint would hold them."""

    name = EngineName("model", "key")
    awaited = "a lease"
    adapters: ClassVar[dict[str, str]] = {}

    def __init__(self, url: str, *, sends_done: bool = False) -> None:
        self.client = HttpClient(url)
        self.sends_done = sends_done
        self.held = 0

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        self.held += 1
        return Connection(self.client, "served")

    def counted_by(self, _: Connection | None) -> EngineName:
        return self.name

    def for_request(self, *_: object) -> LeasedEndpoint:
        return self

    def release(self, connection: Connection) -> None:
        self.held -= 1

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        return error


async def forward(server: RemoteServer, body: bytes, max_retries: int = 2) -> tuple[int, ForwardedAnswer | None]:
    """Through an endpoint of ours, which judges whether an answer is whole: its leases left, and the answer."""
    endpoint = LeasedEndpoint(server.url, sends_done=True)
    settings = EngineSettings(base_url=server.url, max_retries=max_retries)
    forwarding = Forwarding(endpoint, settings)  # type: ignore[arg-type]
    try:
        answer = await forwarding.forward(ForwardedRequest("POST", "/v1/chat/completions", body=body))
    except ServerConnectionError:
        return endpoint.held, None
    finally:
        await endpoint.client.close()
    answer.close()
    return endpoint.held, answer


async def test_an_answer_that_the_engine_gave_up_is_asked_for_again(server: RemoteServer) -> None:
    """vLLM ends it with status 200, and what it had so far."""
    answers = [chat_answer("Hal", "abort"), chat_answer("Hallo")]

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(answers.pop(0))

    server.handler = answer
    held, given = await forward(server, b'{"model":"default"}')
    assert given is not None
    assert b"Hallo" in (given.whole or b"")
    assert held == 0
    answers[:] = [chat_answer("Hal", "abort")]
    assert await forward(server, b'{"model":"default"}', max_retries=0) == (0, None)


# ---- errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("way", ["sync", "stream", "async"])
def test_what_the_server_refuses_is_openais_error_of_the_status(
    server: RemoteServer, status: int, kind: type[openai.APIStatusError], way: str
) -> None:
    server.fails(status, message="the server's words", headers={"x-request-id": "r-1"})
    engine = Engine(base_url=server.url, model="served", max_retries=0)
    with pytest.raises(kind, match="the server's words") as caught:
        ask_by(way, engine)
    assert (caught.value.status_code, caught.value.request_id) == (status, "r-1")
    assert len(server.requests) == 1


def test_what_passes_is_tried_again_as_often_as_the_settings_say(server: RemoteServer) -> None:
    server.fails(503, times=1, headers={"retry-after-ms": "1"})
    assert ask(Engine(base_url=server.url, max_retries=1).openai_client()) == "Hi"
    server.fails(503, times=2, headers={"retry-after-ms": "1"})
    engine = Engine(base_url=server.url, max_retries=1)
    with pytest.raises(openai.InternalServerError):
        ask(engine.openai_client())
    server.fails(503, times=2, headers={"retry-after-ms": "1"})
    assert ask(engine.openai_client(max_retries=2)) == "Hi"


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_server_that_can_t_be_reached_is_a_connection_error_with_our_words(way: str) -> None:
    engine = Engine(base_url="http://127.0.0.1:9", model="m", max_retries=0)
    with pytest.raises(openai.APIConnectionError, match=r"http://127\.0\.0\.1:9 can't be reached") as caught:
        ask_by(way, engine)
    assert isinstance(caught.value.__cause__, ServerUnreachableError)


@pytest.mark.parametrize("way", ["stream", "async"])
def test_a_stream_that_is_cut_off_is_a_connection_error(server: RemoteServer, way: str) -> None:
    server.streams("a", then="cut")
    engine = Engine(base_url=server.url)
    with pytest.raises(openai.APIConnectionError, match="closed the connection before the answer was whole") as caught:
        ask_by(way, engine)
    assert isinstance(caught.value.__cause__, ServerConnectionError)


def test_a_stream_that_is_cut_off_before_its_beginning_is_asked_for_again(server: RemoteServer) -> None:
    well = server.handler
    server.streams("a", "b")
    good, cuts = server.handler, [1]

    async def handler(request: web.Request) -> web.StreamResponse:
        if not cuts:
            return await good(request)
        cuts.pop()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        assert request.transport is not None
        request.transport.close()
        return response

    server.handler = handler
    assert list(stream(Engine(base_url=server.url).openai_client())) == ["a", "b"]
    assert len(server.requests) == 2
    server.handler = well


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_timeout_of_the_call_is_one_of_openais(server: RemoteServer, client: openai.OpenAI, is_stream: bool) -> None:
    server.streams(then="hang")
    with pytest.raises(openai.APITimeoutError, match=r"sent nothing for timeout = 0.2 s") as caught:
        list(stream(client, timeout=0.2)) if is_stream else ask(client, timeout=0.2)
    assert str(caught.value) == caught.value.message
    assert len(server.requests) == 1, "a timeout is not tried again: it would take as long once more"


@pytest.mark.slow
def test_the_silence_of_a_stream_is_limited_by_the_engines_timeout(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    texts = stream(Engine(base_url=server.url, timeout=0.2).openai_client())
    assert next(texts) == "a"
    with pytest.raises(openai.APITimeoutError, match=r"sent nothing for timeout = 0.2 s"):
        next(texts)


def test_a_redirect_says_what_to_write_in_base_url(server: RemoteServer, client: openai.OpenAI) -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("https://elsewhere/v1")

    server.handler = elsewhere
    with pytest.raises(openai.APIStatusError, match="redirects to https://elsewhere/v1: use that as base_url"):
        ask(client)


@pytest.mark.slow
def test_a_client_that_is_dropped_in_mid_stream_leaves_no_request(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    texts = stream(Engine(base_url=server.url).openai_client())
    assert next(texts) == "a"
    del texts
    gc.collect()
    wait_until(server.aborted.is_set, 5, "the request to end")
