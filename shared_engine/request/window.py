"""How many requests a batch has in flight: what the engine runs at once, and a quarter more.

The quarter waits in vLLM's queue, so that an answer that ends has its successor ready (benchmarks/NOTES.md); more
would only keep others waiting there. An engine of ours says how many it runs when it is ready. Before, and of a remote
server, that is a guess, which vLLM's own queue (``/metrics``) corrects while the batch goes on: more where nothing
waits, fewer where more than that quarter does, because a KV cache is full, or others ask as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from shared_engine.errors import VLLMError
from shared_engine.request.io_loop import io_loop
from shared_engine.runtime.metrics import requests_in

SPARE = 0.25
LEAST_SPARE = 4
MOST = 4096
LOOK_S = 1.0
LOOKS = 4
"""So many count for what runs at once: many requests may end together, and as many begin a moment later."""
ARRIVED = 0.9
SHRINKS_TO = 0.75
"""In one look, at most: a queue is full for a moment too, as when a batch begins."""

Limit = Callable[[int], int]
"""How many of a batch may be in flight now, where so many are."""

logger = logging.getLogger(__name__)


def corrected(window: float, in_flight: int, running: int, waiting: int, most_running: int = 0) -> float:
    """The window, after a look at the queue of its server or servers.

    Args:
        in_flight: of this batch.
        most_running: in the looks before.
    """
    takes = max(running, most_running)
    spare = max(LEAST_SPARE, takes * SPARE)
    if in_flight > round(window):
        return window  # it has not come down yet to what was corrected before
    if waiting > spare:
        return max(1.0, window * max(SHRINKS_TO, min(1.0, (takes + spare) / (running + waiting))))
    if in_flight < round(window) or running < takes or running + waiting < ARRIVED * in_flight:
        return window  # nothing is held back; many answers have ended in this moment; many requests are on their way
    return min(window + spare - waiting if waiting else 2 * window, max(window, MOST))


class Window:
    """Of one batch.

    Args:
        first: what is known, or guessed, of the engine; asked again until a look has corrected it.
        look: gives vLLM's metrics as text, empty where a server has none; None while no server is up.
    """

    def __init__(self, first: Callable[[], int], look: Callable[[], Awaitable[str | None]]) -> None:
        self._first = first
        self._look = look
        self._size: float | None = None
        self._in_flight = 0

    def size(self, in_flight: int) -> int:
        """How many may be in flight now, where so many are."""
        self._in_flight = in_flight
        return self._now()

    def _now(self) -> int:
        return self._first() if self._size is None else round(self._size)

    @contextmanager
    def watched(self, count: int) -> Iterator[Limit]:
        """The size, corrected for as long as a batch of ``count`` requests goes on."""
        if count <= self._first():
            yield self.size  # all are in flight at once
            return
        watching = asyncio.run_coroutine_threadsafe(self._watch(), io_loop())
        try:
            yield self.size
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        seen: deque[int] = deque(maxlen=LOOKS)
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                text = await self._look()
            except VLLMError as exc:  # the engine starts again, or the server is gone: its requests will say so
                logger.debug("how many requests wait is not known: %s", exc)
                continue
            if text is None:
                continue
            if "vllm:num_requests_running" not in text:
                return
            before = self._now()
            exact = before if self._size is None else self._size
            running, waiting = requests_in(text)
            after = corrected(exact, self._in_flight, running, waiting, max(seen, default=0))
            seen.append(running)
            if round(after) != before:
                self._size = after
                logger.debug(
                    "%d requests in flight in place of %d: %d run, %d wait", round(after), before, running, waiting
                )
