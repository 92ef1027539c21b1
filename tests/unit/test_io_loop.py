"""The background loop: waiting, leaving early, forking."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from shared_engine import Engine
from shared_engine.errors import EngineError
from shared_engine.request.io_loop import CancelScope, iterate_sync, run_sync
from shared_engine.request.threads import in_a_thread
from tests.support.paths import REPOSITORY, TINY_CHAT


async def add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


async def fail() -> None:
    raise ValueError("no")


def test_a_result_and_an_error_come_through() -> None:
    assert run_sync(add(1, 2)) == 3
    with pytest.raises(ValueError, match="no"):
        run_sync(fail())


async def test_it_works_where_a_loop_is_running() -> None:
    assert run_sync(add(1, 2)) == 3


@pytest.mark.parametrize(
    "call", [lambda: run_sync(add(1, 2)), lambda: list(iterate_sync(numbers())), lambda: Engine(model="m").status()]
)
def test_a_blocking_call_on_the_loop_itself_is_an_error_and_no_wait_for_ever(call: Callable[[], object]) -> None:
    async def calls() -> None:
        call()

    with pytest.raises(EngineError, match="would never return: make it in a thread of its own"):
        run_sync(calls())
    assert run_sync(add(1, 2)) == 3


async def numbers() -> AsyncGenerator[int, None]:
    yield 1


def test_leaving_an_iteration_ends_its_source() -> None:
    ended = threading.Event()

    async def count() -> AsyncGenerator[int, None]:
        try:
            for number in range(1000):
                yield number
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    for number in iterate_sync(count()):
        if number == 3:
            break
    assert ended.wait(5)


def test_an_error_in_the_middle_comes_after_what_came_before() -> None:
    async def source() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("no")

    got: list[int] = []
    with pytest.raises(ValueError, match="no"):
        got.extend(iterate_sync(source()))
    assert got == [1]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    assert run_sync(add(1, 2)) == 3
    child = os.fork()
    if child == 0:
        os._exit(0 if run_sync(add(2, 3)) == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
def test_the_interpreter_ends_without_a_word() -> None:
    code = (
        "from tests.support.remote_server import running_server\n"
        "from shared_engine import Engine\n"
        "with running_server() as server:\n"
        "    engine = Engine(base_url=server.url)\n"
        "    print(engine.chat([{'role': 'user', 'content': 'Hello'}]).text)\n"
        "    stream = engine.stream_chat([{'role': 'user', 'content': 'Hello'}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hi\n", "")


def test_a_thread_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a ``__del__`` at the end of the interpreter."""
    numbers = iterate_sync(_for_ever())
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    calls: list[Callable[[], object]] = [
        lambda: next(numbers),
        lambda: run_sync(add(1, 2)),
        lambda: asyncio.run(in_a_thread(threading.get_ident)),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="shutting down"):
            call()


def test_a_stream_that_has_begun_ends_with_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two() -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.sleep(60)

    numbers = iterate_sync(two())
    assert next(numbers) == 1
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    with pytest.raises(EngineError, match="shutting down"):
        next(numbers)


async def _for_ever() -> AsyncGenerator[int, None]:
    while True:
        await asyncio.sleep(60)
        yield 0


@pytest.mark.parametrize("wait", [lambda: run_sync(asyncio.sleep(60)), lambda: list(iterate_sync(_for_ever()))])
@pytest.mark.parametrize("cancelled_before", [True, False])
def test_what_waits_together_ends_together(wait: Callable[[], object], cancelled_before: bool) -> None:
    scope, has_begun = CancelScope(), threading.Event()

    def waiting() -> object:
        scope.enter()
        has_begun.set()
        return wait()

    if cancelled_before:
        scope.cancel()
    with ThreadPoolExecutor() as threads:
        future = threads.submit(waiting)
        has_begun.wait(10)
        scope.cancel()
        with pytest.raises(CancelledError):
            future.result(timeout=10)


@pytest.mark.parametrize("settings", [{"base_url": "http://127.0.0.1:9", "model": "none"}, {"model": str(TINY_CHAT)}])
@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.achat([{"role": "user", "content": "Hello"}]),
        lambda engine: anext(engine.astream_chat([{"role": "user", "content": "Hello"}])),
        lambda engine: engine.aembed(["Hello"]),
        lambda engine: engine.acount_tokens("Hello"),
        lambda engine: engine.awarmup(),
    ],
)
def test_a_coroutine_that_asyncio_does_not_run_is_told_what_to_do(
    call: Callable[[Engine], Any], settings: dict[str, Any]
) -> None:
    """As under trio, which runs coroutines by itself."""
    coroutine = call(Engine(**settings)).__await__()
    with pytest.raises(EngineError, match=r"need asyncio.*trio.to_thread.run_sync\(llm.invoke"):
        coroutine.send(None)
