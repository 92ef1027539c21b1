"""What the choice of a server costs a request, by the number of servers: microseconds, best of three runs."""

from __future__ import annotations

import random
import sys
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_engine.pool.pool import Member, Pool

REQUESTS = 20_000


def cost_us(servers: int, *, has_key: bool) -> float:
    """Of one request with some in flight: chosen, answered and ended."""
    pool, under_way, chance = Pool(), list[Member](), random.Random(1)
    for number in range(servers):
        pool.add(f"http://host{number}:8000")

    def request() -> None:
        member = pool.choose(1.0, key=f"session {chance.random()}" if has_key else None)
        assert member is not None
        under_way.append(member)
        if len(under_way) > 4 * servers:
            ended = under_way.pop(chance.randrange(len(under_way)))
            pool.answered(ended)
            pool.ended(ended)

    request()
    return min(timeit.repeat(request, number=REQUESTS, repeat=3)) / REQUESTS * 1e6


for count in (1, 3, 100, 1000):
    bare, with_key = cost_us(count, has_key=False), cost_us(count, has_key=True)
    print(f"{count:5} servers: {bare:5.1f} us, with a session {with_key:5.1f} us")
