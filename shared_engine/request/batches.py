"""Many requests at once: how many are in flight, and their results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from shared_engine.launch.spec import DEFAULT_MAX_NUM_SEQS
from shared_engine.request.threads import running_loop
from shared_engine.settings import EngineSettings

T = TypeVar("T")
Item = TypeVar("Item")

SPARE_TEXTS = 1.0


def max_in_flight(settings: EngineSettings, spare: float, told: int | None = None) -> int:
    """What one server runs at once, and a share of it more.

    Where vLLM's queue is limited, none is sent that would have to wait.

    Args:
        told: vLLM's ``max_num_seqs`` of all its EngineCores, where it has said it; else as set, or its usual default.
    """
    engine_args = settings.engine_args
    as_set = settings.data_parallel_size * int(engine_args.get("max_num_seqs") or DEFAULT_MAX_NUM_SEQS)
    max_num_seqs = told or as_set
    max_num_queued = engine_args.get("max_num_queued_reqs")
    if max_num_queued is not None:
        return max(1, min(max_num_seqs, int(max_num_queued)))
    return max(1, int(max_num_seqs * (1 + spare)))


async def crew(step: Callable[[], Awaitable[bool]], limit: Callable[[int], int]) -> None:
    """Have ``step`` done again and again, by ``limit(now)`` tasks at once, until it has nothing more to do.

    The first error ends the others.

    Args:
        step: does one piece of the work; False where there is none left.
        limit: asked after each step, with how many there are; at least 1.
    """
    await _Crew(step, limit).run()


class _Crew:
    """No closures that know each other: those would keep the results until the garbage collector comes."""

    def __init__(self, step: Callable[[], Awaitable[bool]], limit: Callable[[int], int]) -> None:
        self._step = step
        self._limit = limit
        self._has_more = True
        self._workers: set[asyncio.Task[None]] = set()
        self._is_over: asyncio.Future[None] = running_loop().create_future()

    async def run(self) -> None:
        self._fill()
        try:
            await self._is_over
        finally:
            running = list(self._workers)
            for worker in running:
                worker.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _fill(self) -> None:
        while self._has_more and len(self._workers) < self._limit(len(self._workers)):
            worker = asyncio.ensure_future(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._end)

    async def _work(self) -> None:
        while await self._step():
            self._fill()
            if len(self._workers) > self._limit(len(self._workers)):
                self._workers.discard(asyncio.current_task())
                return
        self._has_more = False

    def _end(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if self._is_over.done():
            return
        if worker.cancelled():
            self._is_over.cancel()
        elif error is not None:
            self._is_over.set_exception(error)
        elif not self._workers:
            self._is_over.set_result(None)


async def gather(
    items: Sequence[Item],
    call: Callable[[Item], Awaitable[T]],
    limit: Callable[[int], int],
    return_exceptions: bool,
) -> list[T | Exception]:
    """Call for each item, in order of the items, with at most ``limit(now)`` in flight.

    With ``return_exceptions`` an error takes its item's place; without, the first one ends the others.
    """
    results: list[Any] = [None] * len(items)
    pending = iter(enumerate(items))

    async def step() -> bool:
        for index, item in pending:
            try:
                results[index] = await call(item)
            except Exception as exc:
                if not return_exceptions:
                    raise
                results[index] = exc
            return True
        return False

    if items:
        await crew(step, lambda now: min(limit(now), len(items)))
    return results
