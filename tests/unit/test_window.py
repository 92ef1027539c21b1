"""How many requests a batch has in flight: begun with a guess, corrected by the server's own queue."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from aiohttp import web
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine
from shared_engine.adapting.batches import in_tasks, in_threads
from shared_engine.launcher.about import max_num_seqs
from shared_engine.request import batches, window
from shared_engine.request.batches import crew, gather
from shared_engine.request.window import MOST, corrected
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
GUESS = 40


@pytest.mark.parametrize(
    ("before", "in_flight", "running", "waiting", "most_running", "after"),
    [
        (320, 320, 256, 64, 256, 320),  # as it should be
        (320, 320, 320, 0, 0, 640),  # the server takes more than was guessed
        (320, 100, 100, 0, 0, 320),  # the app does not send faster
        (320, 320, 0, 320, 0, 240),  # nothing runs yet
        (320, 320, 256, 384, 256, 240),  # another batch as large
        (240, 300, 256, 364, 256, 240),  # not yet down to 240
        (240, 240, 256, 304, 256, 180),
        (320, 320, 40, 280, 40, 240),  # its KV cache is full
        (320, 320, 40, 0, 256, 320),  # many have ended in this moment
        (1280, 1280, 214, 0, 0, 1280),  # most are still on their way
        (320, 320, 40, 280, 256, 320),  # and as many have begun
        (300, 300, 256, 44, 256, 320),
        (20, 20, 16, 4, 16, 20),
        (8, 8, 4, 4, 4, 8),  # four wait at least
        (1, 1, 1, 100, 1, 1),  # one always goes on
        (MOST, MOST, MOST, 0, 0, MOST),
        (2 * MOST, 2 * MOST, 2 * MOST, 0, 0, 2 * MOST),  # of many servers
    ],
)
def test_a_quarter_of_what_runs_should_wait(
    before: float, in_flight: int, running: int, waiting: int, most_running: int, after: float
) -> None:
    assert corrected(before, in_flight, running, waiting, most_running) == pytest.approx(after)


class Queue:
    """A server's: ``size`` requests run for ``takes_s`` each, the others wait.

    Attributes:
        most: requests that were in flight at once.
        seen: how many were, at each look.
    """

    def __init__(self, size: int, takes_s: float) -> None:
        self.size = size
        self.takes_s = takes_s
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.most = 0
        self.seen: list[int] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.running < self.size:
            self.running += 1
        else:
            self.waiting.append(asyncio.get_running_loop().create_future())
            self.most = max(self.most, self.running + len(self.waiting))
            await self.waiting[-1]
        self.most = max(self.most, self.running + len(self.waiting))
        await asyncio.sleep(self.takes_s)
        if self.waiting:
            self.waiting.popleft().set_result(None)
        else:
            self.running -= 1
        return web.json_response(chat_answer())

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        running, waiting = self.running, len(self.waiting)
        self.seen.append(running + waiting)
        label = '{engine="0",model_name="m"}'
        return web.Response(
            text=f"vllm:num_requests_running{label} {running}\nvllm:num_requests_waiting{label} {waiting}\n"
        )


async def engine_batch(url: str, count: int) -> int:
    async with Engine(base_url=url) as engine:
        return len(await engine.achat_batch([HELLO] * count))


async def langchain_batch(url: str, count: int) -> int:
    return len(await ChatVLLM(base_url=url).abatch(["Hello"] * count))


async def langchain_threads(url: str, count: int) -> int:
    return len(await asyncio.to_thread(ChatVLLM(base_url=url).batch, ["Hello"] * count))


async def llama_index_batch(url: str, count: int) -> int:
    return len(await VLLM(base_url=url).achat_batch([[ChatMessage("Hello")]] * count))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    """One that is looked at often, and of which little is expected."""
    monkeypatch.setattr(window, "LOOK_S", 0.05)
    monkeypatch.setattr(batches, "DEFAULT_MAX_NUM_SEQS", 32)
    with running_server() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("batch", [engine_batch, langchain_batch, langchain_threads, llama_index_batch])
async def test_a_batch_finds_what_a_small_server_takes(server: RemoteServer, batch: Callable[[str, int], Any]) -> None:
    queue = Queue(8, 0.1)
    server.handler, server.metrics = queue.answer, queue.metrics
    assert await batch(server.url, 200) == 200
    assert queue.most > GUESS // 2, "it began with the guess"
    late = [seen for seen in queue.seen if seen][-14:-4]
    assert 8 <= statistics.median(late) <= 16, queue.seen


@pytest.mark.slow
@pytest.mark.parametrize("batch", [engine_batch, langchain_batch, llama_index_batch])
async def test_a_batch_finds_what_a_large_server_takes(server: RemoteServer, batch: Callable[[str, int], Any]) -> None:
    queue = Queue(1000, 0.5)
    server.handler, server.metrics = queue.answer, queue.metrics
    assert await batch(server.url, 300) == 300
    assert queue.most > GUESS * 1.5


@pytest.mark.slow
async def test_a_server_without_metrics_is_asked_for_them_once(server: RemoteServer) -> None:
    queue = Queue(16, 0.05)
    server.handler = queue.answer
    assert await engine_batch(server.url, 200) == 200
    assert queue.most <= GUESS
    assert [path for path, _ in server.looks].count("/metrics") <= 1


@pytest.mark.slow
async def test_a_small_batch_looks_at_nothing(server: RemoteServer) -> None:
    assert await engine_batch(server.url, GUESS) == GUESS
    assert "/metrics" not in [path for path, _ in server.looks]


# ---- those who do the work


class Work:
    """Pieces of it, and how many were done at once."""

    def __init__(self) -> None:
        self.now = self.done = 0
        self.at_once: list[int] = []
        self.guard = threading.Lock()

    def begin(self) -> None:
        with self.guard:
            self.now += 1
            self.at_once.append(self.now)

    def end(self) -> None:
        with self.guard:
            self.now -= 1
            self.done += 1

    def limit(self, now: int) -> int:
        """8, then 2, then 12."""
        return 8 if self.done < 100 else 2 if self.done < 200 else 12

    def check(self) -> None:
        assert self.done == 400
        assert max(self.at_once[:100]) == 8
        assert max(self.at_once[115:195]) == 2
        assert max(self.at_once[230:]) == 12

    async def do(self, item: int) -> int:
        self.begin()
        await asyncio.sleep(0.001)
        self.end()
        return item


@pytest.mark.slow
async def test_tasks_follow_a_limit_that_changes() -> None:
    work = Work()
    assert await gather(range(400), work.do, work.limit, False) == list(range(400))
    work.check()
    work = Work()
    async with aclosing(in_tasks(work.do, 400, work.limit)) as ended:
        assert sorted([item async for item in ended]) == [(index, index) for index in range(400)]
    work.check()


def test_threads_follow_a_limit_that_changes() -> None:
    work = Work()

    def do(item: int) -> int:
        work.begin()
        time.sleep(0.002)
        work.end()
        return item

    assert sorted(in_threads(do, 400, work.limit)) == [(index, index) for index in range(400)]
    work.check()


async def test_the_first_error_ends_the_others_and_no_error_is_left_unseen() -> None:
    begun: list[int] = []

    async def fail(item: int) -> int:
        begun.append(item)
        await asyncio.sleep(0)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        await gather(range(100), fail, lambda _: 4, False)
    assert len(begun) == 4
    begun.clear()
    with pytest.raises(ValueError, match="0"):
        async for _ in in_tasks(fail, 100, lambda _: 4):
            pass
    assert len(begun) == 4


async def test_who_cancels_a_crew_ends_its_work() -> None:
    ended = 0

    async def step() -> bool:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        return True

    crew_task = asyncio.ensure_future(crew(step, lambda _: 5))
    await asyncio.sleep(0.01)
    crew_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await crew_task
    assert ended == 5


# ---- what an engine says


class Config:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_an_engine_takes_so_many_on_all_its_cores() -> None:
    config = Config(scheduler_config=Config(max_num_seqs=16), parallel_config=Config(data_parallel_size=2))
    assert max_num_seqs(Config(state=Config(vllm_config=config))) == 32
    assert max_num_seqs(Config(state=Config())) is None
