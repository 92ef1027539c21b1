"""Callers of one loop that want the same wait for one task."""

from __future__ import annotations

import asyncio

import pytest

from shared_engine.request.shared_tasks import SharedTasks


class Made:
    """Counts how often the task was begun."""

    def __init__(self) -> None:
        self.count = 0
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.count += 1
        await self.may_end.wait()
        return self.count


async def test_all_who_come_meanwhile_get_the_value_of_one_task() -> None:
    tasks, make = SharedTasks(), Made()
    waiting = [asyncio.create_task(tasks.run("key", make)) for _ in range(5)]
    await asyncio.sleep(0)
    assert tasks.is_running("key")
    assert not tasks.is_running("other")
    make.may_end.set()
    assert await asyncio.gather(*waiting) == [1] * 5
    await asyncio.sleep(0)
    assert not tasks.is_running("key")
    assert await tasks.run("key", make) == 2


async def test_cancelling_one_stops_its_waiting_only() -> None:
    tasks, make = SharedTasks(), Made()
    first, second = (asyncio.create_task(tasks.run("key", make)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    make.may_end.set()
    assert await second == 1
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_an_error_reaches_all_and_the_next_one_tries_again() -> None:
    tasks = SharedTasks()
    outcomes = iter([ZeroDivisionError(), None])

    async def make() -> str:
        await asyncio.sleep(0)
        error = next(outcomes)
        if error is not None:
            raise error
        return "made"

    failed = await asyncio.gather(*(tasks.run("key", make) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(error, ZeroDivisionError) for error in failed)
    assert await tasks.run("key", make) == "made"


def test_a_loop_joins_no_task_of_another() -> None:
    tasks = SharedTasks()

    async def make() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def ask() -> bool:
        return await tasks.run("key", make) is asyncio.get_running_loop()

    assert asyncio.run(ask())
    assert asyncio.run(ask())
