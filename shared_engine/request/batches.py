"""Many requests at once: how many are in flight, and their results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from shared_engine.launch.spec import DEFAULT_MAX_NUM_SEQS
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


async def crew(step: Callable[[], Awaitable[bool]], limit: Callable[[], int]) -> None:
    """Have ``step`` done again and again, by ``limit()`` tasks at once, until it has nothing more to do.

    The first error ends the others.

    Args:
        step: does one piece of the work; False where there is none left.
        limit: asked after each step; at least 1.
    """
    has_more = True
    workers: set[asyncio.Task[None]] = set()
    is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        nonlocal has_more
        while await step():
            fill()
            if len(workers) > limit():
                workers.discard(asyncio.current_task())
                return
        has_more = False

    def fill() -> None:
        while has_more and len(workers) < limit():
            worker = asyncio.ensure_future(work())
            workers.add(worker)
            worker.add_done_callback(end)

    def end(worker: asyncio.Task[None]) -> None:
        workers.discard(worker)
        error = None if worker.cancelled() else worker.exception()
        if is_over.done():
            return
        if worker.cancelled():
            is_over.cancel()
        elif error is not None:
            is_over.set_exception(error)
        elif not workers:
            is_over.set_result(None)

    fill()
    try:
        await is_over
    finally:
        running = list(workers)
        for worker in running:
            worker.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def gather(
    items: Sequence[Item],
    call: Callable[[Item], Awaitable[T]],
    limit: Callable[[], int],
    return_exceptions: bool,
) -> list[T | BaseException]:
    """Call for each item, in order of the items, with at most ``limit()`` in flight.

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
        await crew(step, lambda: min(limit(), len(items)))
    return results
