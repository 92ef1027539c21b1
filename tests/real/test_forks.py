"""Processes that fork or spawn with an engine in hand: preloaded workers, pools. No one keeps what is another's."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from shared_engine import Engine, EngineState
from shared_engine.request.io_loop import io_loop
from tests.support.in_flight import HELLO, SHORT, answer_in_flight, use
from tests.support.processes import end_of, run_app
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def engine(quiet_engine: Engine) -> Engine:
    return quiet_engine


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A forked child that does ``work``, lives on until the block ends, and must not have failed."""
    done_r, done_w = os.pipe()
    leave_r, leave_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(leave_w)
        try:
            work()
            os.write(done_w, b"1")
        except BaseException:
            traceback.print_exc()
            os.write(done_w, b"0")
        os.read(leave_r, 1)
        os._exit(0)
    os.close(leave_r)
    try:
        os.set_blocking(done_r, False)
        said: list[bytes] = []
        wait_until(lambda: said or read_into(said, done_r), 30, "the forked child")
        assert said == [b"1"]
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for fd in (done_r, done_w, leave_w):
            os.close(fd)


def read_into(said: list[bytes], fd: int) -> bool:
    try:
        said.append(os.read(fd, 1))
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("before", [[], ["used and in use"]], ids=["constructed only", "used and in use"])
def test_workers_of_a_preloaded_app_each_use_it_and_so_does_the_parent(
    tiny_chat: dict[str, Any], engine: Engine, before: list[str]
) -> None:
    app = run_app("forking_workers", json.dumps(tiny_chat), *before)
    assert end_of(app) == (0, "[0, 0, 0, 0, 0, 0] 6\nHello! How Hello! How\n", "")


def test_a_child_that_never_uses_it_does_not_keep_the_parents_lease(engine: Engine) -> None:
    answer = answer_in_flight(engine)
    with forked(lambda: None):
        assert answer.result(timeout=30).finish_reason == "length", "the parent's answer still comes"
        engine.evict(timeout=5)
        assert engine.status().state is EngineState.STANDBY
    assert use(engine)


def test_a_child_keeps_no_connection_of_the_parent(engine: Engine) -> None:
    use(engine)
    server_socket = engine.status().socket
    assert server_socket is not None
    assert connections_to(server_socket) > 0

    def see() -> None:
        gc.collect()
        assert connections_to(server_socket) == 0

    answer = answer_in_flight(engine)
    with forked(see):
        assert answer.result(timeout=30).finish_reason == "length"


def connections_to(server_socket: str) -> int:
    """Open descriptors of this process that are connected to a Unix socket."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            count += connection.getpeername() == server_socket
    return count


def test_a_server_sees_the_parent_hang_up_while_a_child_lives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        engine = Engine(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", model="m", max_retries=0)
        answer = asyncio.run_coroutine_threadsafe(engine.achat(HELLO), io_loop())
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            while b"Hello" not in connection.recv(1 << 16):
                pass
            with forked(gc.collect):
                answer.cancel()
                assert connection.recv(1 << 16) == b""


def test_a_child_that_collects_garbage_leaves_the_parents_open_connections_alone(engine: Engine) -> None:
    text = use(engine)

    def collect_and_use() -> None:
        gc.collect()
        assert use(engine) == text

    stream = engine.stream_chat(HELLO, max_tokens=64, extra_body={"ignore_eos": True})
    next(stream)
    with forked(collect_and_use):
        assert list(stream)[-1].usage is not None
        assert use(engine) == text


def test_a_stream_of_the_parent_ends_with_an_error_in_the_child_and_goes_on_in_the_parent(engine: Engine) -> None:
    stream = engine.stream_chat(HELLO, max_tokens=64, extra_body={"ignore_eos": True})
    next(stream)

    def read_on() -> None:
        with pytest.raises(ConnectionError, match="forked"):
            list(stream)

    with forked(read_on):
        assert list(stream)[-1].usage is not None


def test_a_child_forked_during_another_threads_first_use_does_not_hang(
    tiny_chat: dict[str, Any], engine: Engine
) -> None:
    assert end_of(run_app("fork_during_first_use", json.dumps(tiny_chat))) == (0, "0\n", "")


def test_a_forked_pool_after_use(engine: Engine) -> None:
    text = use(engine)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(use, [engine] * 4).get(timeout=30) == [text] * 4
    assert use(engine) == text


def test_a_spawned_pool_gets_it_pickled(engine: Engine) -> None:
    text = use(engine)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(use, [engine] * 3, timeout=60)) == [text] * 3


def test_uvloop(engine: Engine) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> str:
        assert "".join([chunk.text async for chunk in engine.astream_chat(HELLO, **SHORT)]) == "Hello! How"
        return (await engine.achat(HELLO, **SHORT)).text

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == "Hello! How"
        with forked(partial(use, engine)):
            assert runner.run(main()) == "Hello! How"
