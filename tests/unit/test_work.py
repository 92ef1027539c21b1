"""One piece of work at a time, and what it has to say to those who wait."""

from __future__ import annotations

import asyncio

from shared_engine.runtime.record import Failure, FailureKind
from shared_engine.supervisor.work import Work, WorkSlot

FAILURE = Failure(FailureKind.START, "no such flag")


class Waiting(Work):
    """Work that ends when it is told to."""

    def __init__(self, failure: Failure | None = None, *, can_be_cancelled: bool = False) -> None:
        self.may_end = asyncio.Event()
        self.was_cancelled = False
        self.can_be_cancelled = can_be_cancelled  # type: ignore[misc]
        self._failure = failure

    async def run(self) -> Failure | None:
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return self._failure


class Broken(Work):
    async def run(self) -> Failure | None:
        raise ZeroDivisionError


def make_slot() -> tuple[WorkSlot, list[str]]:
    events: list[str] = []
    return WorkSlot(lambda: events.append("done"), lambda error: events.append(type(error).__name__)), events


async def test_all_who_wait_hear_how_it_ended() -> None:
    slot, events = make_slot()
    assert await slot.outcome() is None, "nothing is under way"
    work = Waiting(FAILURE)
    slot.begin(work)
    waiting = [asyncio.create_task(slot.outcome()) for _ in range(3)]
    await asyncio.sleep(0)
    assert slot.is_busy
    work.may_end.set()
    assert await asyncio.gather(*waiting) == [FAILURE] * 3
    assert not slot.is_busy
    assert events == ["done"]


async def test_a_start_is_cancelled_for_a_stop_and_those_who_wait_hear_so() -> None:
    slot, events = make_slot()
    start, stop = Waiting(can_be_cancelled=True), Waiting()
    slot.begin(start)
    waiting = asyncio.create_task(slot.outcome())
    await asyncio.sleep(0)
    slot.begin_instead(stop)
    failure = await waiting
    assert failure is not None
    assert failure.kind is FailureKind.STOPPED
    assert start.was_cancelled
    assert slot.is_busy
    stop.may_end.set()
    assert await slot.outcome() is None
    assert events == ["done"], "the slot was never free in between"


async def test_a_start_does_not_go_on_with_what_comes_in_the_moment_of_the_stop() -> None:
    slot, _ = make_slot()
    start, stop = Waiting(can_be_cancelled=True), Waiting()
    slot.begin(start)
    await asyncio.sleep(0)
    start.may_end.set()
    slot.begin_instead(stop)
    stop.may_end.set()
    await slot.outcome()
    assert start.was_cancelled


async def test_what_ends_a_server_is_waited_for_instead() -> None:
    slot, _ = make_slot()
    first, second = Waiting(), Waiting()
    slot.begin(first)
    slot.begin_instead(second)
    second.may_end.set()
    await asyncio.sleep(0.05)
    assert slot.is_busy
    first.may_end.set()
    await slot.outcome()
    assert not first.was_cancelled
    assert not slot.is_busy


async def test_a_mistake_is_told_of() -> None:
    slot, events = make_slot()
    slot.begin(Broken())
    await asyncio.sleep(0.01)
    assert events == ["done", "ZeroDivisionError"]
