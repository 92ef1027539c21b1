"""Many requests at once: how many are in flight, and their results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from shared_engine.launch.spec import DEFAULT_MAX_NUM_SEQS
from shared_engine.settings import EngineSettings

T = TypeVar("T")
Item = TypeVar("Item")

SPARE_GENERATIONS = 0.25
SPARE_TEXTS = 1.0


def max_in_flight(settings: EngineSettings, spare: float) -> int:
    """vLLM's max_num_seqs, of all its EngineCores, and a share of it more: one that ends has its successor ready
    (benchmarks/NOTES.md).

    More would only make others wait in vLLM's queue; where that queue is limited, none is sent that would have to wait.
    """
    engine_args = settings.engine_args
    max_num_seqs = settings.data_parallel_size * int(engine_args.get("max_num_seqs") or DEFAULT_MAX_NUM_SEQS)
    max_num_queued = engine_args.get("max_num_queued_reqs")
    if max_num_queued is not None:
        return max(1, min(max_num_seqs, int(max_num_queued)))
    return max(1, int(max_num_seqs * (1 + spare)))


async def gather(
    items: Sequence[Item], call: Callable[[Item], Awaitable[T]], limit: int, return_exceptions: bool
) -> list[T | BaseException]:
    """Call for each item, in order of the items, with at most ``limit`` in flight.

    With ``return_exceptions`` an error takes its item's place; without, the first one ends the others.
    """
    results: list[Any] = [None] * len(items)
    pending = iter(enumerate(items))

    async def work() -> None:
        for index, item in pending:
            try:
                results[index] = await call(item)
            except Exception as exc:
                if not return_exceptions:
                    raise
                results[index] = exc

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return results
