"""Requests to an ASGI application on another thread's loop: what the caller sees, and that it is told who leaves."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, cast

import pytest

from shared_engine import RequestRejectedError, RequestTimeoutError, ServerConnectionError, ServerError
from shared_engine.errors import ServerUnreachableError
from shared_engine.request.in_process import InProcessClient, in_process_client
from shared_engine.request.patience import Patience, is_working
from tests.support.waiting import until_it_is, wait_until

SAID = b'{"error": {"message": "no such model"}}'


class AppHost:
    """Stands for a Host: a loop in a thread, with an application that does what its path says."""

    def __init__(self) -> None:
        self.headers = {"authorization": "Bearer app"}
        self.clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self.left = threading.Event()
        self.scope: dict[str, Any] = {}
        self.body = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self.is_over = False
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, make: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        return self.soon(lambda: self._tasks.add(self._loop.create_task(make())))

    def soon(self, callback: Callable[[], object]) -> bool:
        if not self.is_over:
            self._loop.call_soon_threadsafe(callback)
        return not self.is_over

    def end(self) -> None:
        """As a host that is ended with requests in flight."""
        self.soon(lambda: [task.cancel() for task in self._tasks])
        self.soon(lambda: self._loop.call_soon(self._loop.stop))
        self._thread.join(5)
        self.is_over = True
        self._loop.close()

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scope = scope
        self.body = (await receive())["body"]
        what = scope["path"].strip("/")
        if what == "raise":
            raise ValueError("vLLM is broken")
        status = {"refuse": 404, "busy": 503}.get(what, 200)
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"7")]
        if what == "silent":
            await self._see_who_leaves(receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if what == "stream":
            for number in range(3):
                await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await self._see_who_leaves(receive)
        if what == "cut":
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            return
        said = SAID if status >= 400 else b'{"path": "%s"}' % what.encode()
        await send({"type": "http.response.body", "body": said})

    async def _see_who_leaves(self, receive: Any) -> None:
        if (await receive())["type"] == "http.disconnect":
            self.left.set()


@pytest.fixture
def host() -> Iterator[AppHost]:
    host = AppHost()
    yield host
    if not host.is_over:
        host.end()


def client_of(host: AppHost) -> InProcessClient:
    return in_process_client(cast("Any", host))


async def test_a_request_has_its_body_headers_and_query(host: AppHost) -> None:
    client = client_of(host)
    assert await client.request("POST", "/v1/a%20b", b"{}") == b'{"path": "v1/a b"}'
    assert (host.scope["method"], host.body) == ("POST", b"{}")
    answer = await client.with_headers((("X-One", "1"),)).send("GET", "/x?b=1", None, None, (("Content-Type", "a/b"),))
    sent = dict(host.scope["headers"])
    assert (sent[b"x-one"], sent[b"content-type"], sent[b"authorization"]) == (b"1", b"a/b", b"Bearer app")
    assert host.scope["query_string"] == b"b=1"
    assert (answer.status, answer.content_type, answer.headers["Retry-After"]) == (200, "application/json", "7")


async def test_refusals_are_those_of_a_server(host: AppHost) -> None:
    with pytest.raises(RequestRejectedError, match="HTTP 404: no such model"):
        await client_of(host).request("GET", "/refuse")
    with pytest.raises(ServerError) as caught:
        await client_of(host).request("GET", "/busy")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 7)


async def test_an_answer_that_is_cut_off_is_told_so(host: AppHost) -> None:
    with pytest.raises(ServerConnectionError, match=r"before the answer was whole$"):
        await client_of(host).request("GET", "/cut")
    with pytest.raises(ServerConnectionError, match="whole: ValueError: vLLM is broken"):
        await client_of(host).request("GET", "/raise")


async def test_leaving_a_stream_is_told_to_the_application(host: AppHost) -> None:
    events = client_of(host).stream("/stream", b"{}")
    await events.open()
    assert [await anext(events) for _ in range(3)] == [b"0", b"1", b"2"]
    assert not host.left.is_set()
    events.close()
    wait_until(host.left.is_set, 5, "the application to hear of it")


async def test_cancelling_a_request_is_told_to_the_application(host: AppHost) -> None:
    request = asyncio.create_task(client_of(host).request("GET", "/silent"))
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    wait_until(host.left.is_set, 5, "the application to hear of it")


async def test_silence_has_a_limit(host: AppHost) -> None:
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError, match=r"vLLM in this process sent nothing for timeout = 0\.1 s"):
        await client_of(host).request("GET", "/silent", timeout=0.1)
    assert time.monotonic() - began < 3
    wait_until(host.left.is_set, 5, "the application to hear of it")


async def test_a_host_that_ends_ends_its_requests_and_takes_no_more(host: AppHost) -> None:
    request = asyncio.create_task(client_of(host).request("GET", "/silent"))
    await asyncio.sleep(0.05)
    host.end()
    with pytest.raises(ServerConnectionError, match="ended before the answer was whole"):
        await request
    with pytest.raises(ServerUnreachableError, match="vLLM in this process has ended"):
        await client_of(host).request("GET", "/x")


def test_every_loop_has_its_own_client(host: AppHost) -> None:
    async def ask() -> InProcessClient:
        client = client_of(host)
        assert client_of(host) is client
        await asyncio.gather(*(client.request("GET", "/x") for _ in range(50)))
        return client

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first is not second


@pytest.mark.slow
async def test_nothing_is_kept_of_a_host_that_has_ended_while_the_loop_goes_on() -> None:
    host = AppHost()
    assert await client_of(host).request("GET", "/x")
    with pytest.raises(TimeoutError):
        async with Patience(0.05, partial(is_working, client_of(host), 0.05)):
            await client_of(host).request("GET", "/silent", timeout=5)
    host.end()
    kept = weakref.ref(host)
    del host
    await until_it_is(lambda: gc.collect() >= 0 and kept() is None, 10, "the host to be collected")


def test_a_loop_that_is_closed_with_a_stream_half_read_ends_the_request(host: AppHost) -> None:
    async def read_half() -> None:
        events = client_of(host).stream("/stream", b"{}")
        await events.open()
        kept.append(events)

    kept: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(read_half())
    loop.close()
    kept[0].close()
    wait_until(host.left.is_set, 5, "the application to hear of it")
