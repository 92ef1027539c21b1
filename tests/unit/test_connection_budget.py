"""One budget of connections for all loops and threads of a process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from shared_engine import Engine
from shared_engine.request import aiohttp_quirks, connection_budget
from shared_engine.request.connection_budget import Budget, Slot
from tests.support.processes import end_of, run_app
from tests.support.remote_server import RemoteServer, chat_answer, running_server


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Budget:
    monkeypatch.setattr(connection_budget, "max_connections", lambda: 2)
    return Budget()


async def waiting(budget: Budget) -> asyncio.Task[Slot]:
    task = asyncio.ensure_future(budget.take())
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def test_who_comes_when_all_is_taken_waits_and_the_first_is_the_next(budget: Budget) -> None:
    first, second = await budget.take(), await budget.take()
    third, fourth = await waiting(budget), await waiting(budget)
    first.give_back()
    first.give_back()  # once only
    slot = await asyncio.wait_for(third, 5)
    assert not fourth.done()
    second.give_back()
    slot.give_back()
    (await asyncio.wait_for(fourth, 5)).give_back()
    assert budget._taken == 0


async def test_a_cancelled_one_takes_nothing(budget: Budget) -> None:
    slots = [await budget.take(), await budget.take()]
    before, at_once, after = await waiting(budget), await waiting(budget), await waiting(budget)
    before.cancel()
    await asyncio.sleep(0)
    slots.pop().give_back()  # granted to the next, who leaves before it hears of it
    at_once.cancel()
    slots.pop().give_back()
    (await asyncio.wait_for(after, 5)).give_back()
    await asyncio.sleep(0.01)
    assert (budget._taken, len(budget._waiting)) == (0, 0)


async def test_what_is_dropped_with_its_loop_is_given_back(budget: Budget) -> None:
    def on_a_loop_that_ends(*, is_waiting: bool) -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(budget.take())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        assert task.done() is not is_waiting

    await asyncio.to_thread(on_a_loop_that_ends, is_waiting=False)
    assert budget._taken == 0
    slots = [await budget.take(), await budget.take()]
    await asyncio.to_thread(on_a_loop_that_ends, is_waiting=True)
    here = await waiting(budget)
    slots.pop().give_back()
    await asyncio.wait_for(here, 5)
    del here
    slots.clear()
    await asyncio.sleep(0)  # until then Python 3.14 keeps what woke this task
    gc.collect()
    assert budget._taken == 0


def test_many_threads_share_it(budget: Budget) -> None:
    now, most, guard = 0, 0, threading.Lock()

    async def use() -> None:
        nonlocal now, most
        slot = await budget.take()
        with guard:
            now += 1
            most = max(most, now)
        await asyncio.sleep(0.001)
        with guard:
            now -= 1
        slot.give_back()

    async def many() -> None:
        await asyncio.gather(*(use() for _ in range(25)))

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (now, most, budget._taken) == (0, 2, 0)


@pytest.fixture
def slow_server() -> Iterator[RemoteServer]:
    async def answer(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.json_response(chat_answer())

    with running_server() as server:
        server.handler = answer
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("closed_by", ["server", "client"])
async def test_a_slot_is_given_back_once_its_file_is_closed(
    slow_server: RemoteServer, monkeypatch: pytest.MonkeyPatch, closed_by: str
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        if closed_by == "client":
            await asyncio.sleep(10)
        return web.json_response(chat_answer(), headers={"Connection": "close"})

    slow_server.handler = answer
    opened: list[socket.socket] = []
    monkeypatch.setattr(aiohttp_quirks, "keep_alive", lambda it: opened.append(it.get_extra_info("socket")))
    open_then: list[int] = []

    class NotedSlot(Slot):
        def give_back(self) -> None:
            if self._budget is not None:
                open_then.append(sum(each.fileno() >= 0 for each in opened))
            super().give_back()

        __del__ = give_back

    monkeypatch.setattr(connection_budget, "Slot", NotedSlot)
    engine = Engine(base_url=slow_server.url, model="served")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(
            engine.achat([{"role": "user", "content": "Hello"}]), 5 if closed_by == "server" else 0.5
        )
    await asyncio.sleep(0.05)
    assert (len(opened), open_then) == (1, [0])
    await engine.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [128, 256])
def test_batches_on_several_loops_keep_within_the_files_there_are(slow_server: RemoteServer, limit: int) -> None:
    status, out, err = end_of(run_app("few_files", slow_server.url, str(limit)), 60)
    assert (status, err) == (0, "")
    most, error = out.split()
    assert limit // 3 < int(most) < limit
    assert error == "ServerUnreachableError", "with no file left"
