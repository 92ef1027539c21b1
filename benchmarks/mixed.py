"""Mixed load: long streams and short answers that arrive at random, synchronous and not, the same for every client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from questions import Answer, questions

SEED = 6
STREAM_TOKENS, SHORT_TOKENS = 128, 8
PER_SECOND = 40.0
SHORTS_PER_STREAM = 3


@dataclass(frozen=True)
class Arrival:
    """A request of the trace.

    Attributes:
        at_s: when it is due, after the beginning.
        is_sync: an app's thread asks, else a task.
    """

    at_s: float
    text: str
    is_stream: bool
    is_sync: bool
    framework: str

    @property
    def tokens(self) -> int:
        return STREAM_TOKENS if self.is_stream else SHORT_TOKENS


def poisson_trace(streams: int) -> list[Arrival]:
    """``streams`` long streams among three times as many short answers; the same each time."""
    chance = random.Random(SEED)
    kinds = [True] * streams + [False] * streams * SHORTS_PER_STREAM
    chance.shuffle(kinds)
    at_s = 0.0
    trace = []
    for is_stream, text in zip(kinds, questions(len(kinds)), strict=True):
        at_s += chance.expovariate(PER_SECOND)
        framework = chance.choice(["LangChain", "LlamaIndex"])
        trace.append(Arrival(at_s, text, is_stream, chance.random() < 0.5, framework))
    return trace


async def replay(trace: list[Arrival], ask: Callable[[Arrival], Awaitable[Answer]]) -> tuple[list[float], list[Answer]]:
    """Seconds from when each was due until its last token, and the answers; in order of the trace."""
    began = time.perf_counter()

    async def one(arrival: Arrival) -> tuple[float, Answer]:
        await asyncio.sleep(began + arrival.at_s - time.perf_counter())
        answer = await ask(arrival)
        return time.perf_counter() - began - arrival.at_s, answer

    done = await asyncio.gather(*(one(arrival) for arrival in trace))
    return [latency for latency, _ in done], [answer for _, answer in done]
