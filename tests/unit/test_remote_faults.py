"""A remote server that fails: typed errors, retries only where nothing reached the caller, nothing left open."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Iterator

import pytest
from aiohttp import web

from shared_engine import (
    AuthenticationError,
    Engine,
    EngineError,
    EngineState,
    GenerationResult,
    InvalidInputError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestRejectedError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    ServerUnreachableError,
)
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def test_an_answer_and_what_was_sent(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url + "/v1", api_key="s3cret", temperature=0.5)
    assert engine.chat(HELLO, max_tokens=5).text == "Hi"
    ((headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer s3cret"
    assert body == {"model": "served", "messages": HELLO, "temperature": 0.5, "max_tokens": 5}
    assert "s3cret" not in repr(engine)
    assert b"s3cret" not in pickle.dumps(engine)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (400, RequestRejectedError, 1),
        (401, AuthenticationError, 1),
        (403, PermissionDeniedError, 1),
        (404, ModelNotFoundError, 1),
        (408, RequestRejectedError, 3),
        (409, RequestRejectedError, 3),
        (413, RequestRejectedError, 1),
        (422, RequestRejectedError, 1),
        (429, RateLimitError, 3),
        (500, ServerError, 3),
        (501, ServerError, 1),
        (502, ServerError, 3),
        (503, ServerError, 3),
        (504, ServerError, 3),
        (529, ServerError, 3),
    ],
)
def test_a_refusal_is_typed_and_retried_only_where_it_may_pass(
    server: RemoteServer, status: int, kind: type[Exception], tries: int, stream: bool, no_waiting: None
) -> None:
    server.fails(status, message="the server's own words")
    engine = Engine(base_url=server.url, max_retries=2)
    ask = engine.stream_chat if stream else engine.chat
    with pytest.raises(kind, match="the server's own words"):
        tuple(ask(HELLO))  # type: ignore[arg-type]
    assert len(server.requests) == tries


def test_a_server_that_is_busy_for_a_moment_is_waited_for(server: RemoteServer, no_waiting: None) -> None:
    server.fails(503, times=2)
    assert Engine(base_url=server.url).chat(HELLO).text == "Hi"
    assert len(server.requests) == 3


def test_max_retries_0_means_one_try(server: RemoteServer) -> None:
    server.fails(503)
    with pytest.raises(ServerError):
        Engine(base_url=server.url, max_retries=0).chat(HELLO)
    assert len(server.requests) == 1


def test_a_stream_cut_in_the_middle_is_an_error_after_what_came(server: RemoteServer) -> None:
    server.streams("a", "b", then="cut")
    got: list[str] = []
    with pytest.raises(ServerConnectionError):
        got.extend(chunk.text for chunk in Engine(base_url=server.url).stream_chat(HELLO))
    assert got in (["a", "b"], [])
    assert len(server.requests) == (1 if got else 3), "what has reached the caller is never asked for again"


@pytest.mark.slow
def test_an_aborted_answer_is_never_taken_for_a_whole_one(server: RemoteServer) -> None:
    async def aborted(request: object) -> object:
        from aiohttp import web

        return web.json_response(chat_answer("Half an ans", "abort"))

    server.handler = aborted  # type: ignore[assignment]
    with pytest.raises(ServerConnectionError, match="stopped in the middle of the answer"):
        Engine(base_url=server.url, max_retries=2).chat(HELLO)
    assert len(server.requests) == 3


@pytest.mark.slow
def test_silence_is_a_timeout_that_names_the_setting(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    with pytest.raises(RequestTimeoutError, match=r"timeout = 0\.3 s"):
        list(Engine(base_url=server.url, timeout=0.3).stream_chat(HELLO))


def test_leaving_a_stream_closes_its_request(server: RemoteServer) -> None:
    server.streams("a", then="hang")
    for chunk in Engine(base_url=server.url).stream_chat(HELLO):
        assert chunk.text == "a"
        break
    assert server.aborted.wait(5)


async def test_cancelling_a_task_closes_its_request(server: RemoteServer) -> None:
    server.streams(then="hang")
    task = asyncio.ensure_future(Engine(base_url=server.url).achat(HELLO))
    while not server.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.aborted.wait, 5)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    engine = Engine(base_url=url, model="m", max_retries=1)
    with pytest.raises(ServerUnreachableError, match=url):
        engine.chat(HELLO)
    assert not engine.is_ready()
    assert engine.status().state is EngineState.FAILED


def test_any_number_of_event_loops_one_after_another(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    for _ in range(3):
        assert asyncio.run(engine.achat(HELLO)).text == "Hi"
    assert engine.chat(HELLO).text == "Hi"


def test_somebody_elses_server_is_never_stopped(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    engine.warmup()
    assert engine.is_ready()
    for end in (engine.evict, engine.shutdown):
        with pytest.raises(EngineError, match="is remote"):
            end()
    assert engine.is_ready()


def test_bad_input_is_refused_before_anything_is_sent(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    assert engine.chat_batch([]) == []
    assert engine.generate_batch([]) == []
    assert engine.embed([]).embeddings == []
    for call in (
        lambda: engine.chat([]),
        lambda: engine.chat("Hello"),  # type: ignore[arg-type]
        lambda: engine.chat(HELLO, max_token=5),
        lambda: engine.chat(HELLO, temperature=-1),
        lambda: engine.stream_chat([{"role": "robot", "content": "x"}]),
        lambda: engine.generate(5),  # type: ignore[arg-type]
        lambda: engine.generate_batch(["a", 5]),  # type: ignore[list-item]
        lambda: engine.generate_batch("one string"),
        lambda: engine.embed("one string"),
        lambda: engine.chat_batch([HELLO, []]),
        lambda: engine.chat(HELLO, tool_choice="required"),
        lambda: engine.stream_chat(HELLO, tool_choice="required"),
        lambda: engine.chat(HELLO, extra_body={"x": object()}),
        lambda: engine.stream_generate("Hello", extra_body={"x": object()}),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert not server.requests


def test_one_refused_item_of_a_batch_fails_alone(server: RemoteServer) -> None:
    async def handler(request: object) -> object:
        from aiohttp import web

        content = server.requests[-1][1]["messages"][0]["content"]
        if content == "bad":
            return web.json_response({"error": {"message": "no"}}, status=400)
        return web.json_response(chat_answer(content.upper()))

    server.handler = handler  # type: ignore[assignment]
    engine = Engine(base_url=server.url, engine_args={"max_num_seqs": 1})
    conversations = [[{"role": "user", "content": text}] for text in ("a", "bad", "b")]
    first, second, third = engine.chat_batch(conversations, return_exceptions=True)
    assert isinstance(first, GenerationResult) and isinstance(third, GenerationResult)
    assert (first.text, third.text) == ("A", "B")
    assert isinstance(second, RequestRejectedError)
    with pytest.raises(RequestRejectedError):
        engine.chat_batch(conversations)


def test_a_stream_left_open_at_the_end_of_its_loop_is_closed_quietly(
    server: RemoteServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.streams("a", "b", then="hang")
    engine = Engine(base_url=server.url)

    async def leave() -> None:
        async for _ in engine.astream_chat(HELLO):
            break

    async def keep() -> object:
        stream = engine.astream_chat(HELLO)
        async for _ in stream:
            break
        return stream

    for begin in (leave, keep) * 5:
        asyncio.run(begin())
    assert server.aborted.wait(10)
    assert caplog.records == []


@pytest.mark.slow
def test_a_server_that_was_started_with_another_model_is_asked_for_that() -> None:
    """By whoever named none: the first one of the server is meant."""
    with running_server() as server:
        engine = Engine(base_url=server.url)
        assert engine.chat(HELLO).text == "Hi"

        async def knows_the_new_model_only(request: web.Request) -> web.StreamResponse:
            model = (await request.json())["model"]
            if model == "served":
                message = f"The model `{model}` does not exist."
                return web.json_response({"error": {"message": message, "code": 404}}, status=404)
            return web.json_response(chat_answer(f"by {model}"))

        server.handler = knows_the_new_model_only
        server.models = [{"id": "new", "max_model_len": 100}]
        assert engine.chat(HELLO).text == "by new"
        assert engine.context_window == 100
        with pytest.raises(ModelNotFoundError, match="`served` does not exist"):
            Engine(base_url=server.url, model="served").chat(HELLO)
