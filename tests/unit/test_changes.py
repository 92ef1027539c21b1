"""No change is missed between looking and waiting."""

from __future__ import annotations

import asyncio
import time

from shared_engine.supervisor.changes import Changes


async def test_a_change_after_the_look_ends_the_wait_at_once() -> None:
    changes = Changes()
    seen = changes.count
    changes.note()
    began = time.monotonic()
    await changes.wait_after(seen, 30)
    assert time.monotonic() - began < 10


async def test_a_change_wakes_all_who_wait() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.wait_after(changes.count, 30)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.note()
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


async def test_without_a_change_the_time_ends_the_wait() -> None:
    changes = Changes()
    changes.note()
    await changes.wait_after(changes.count, 0.05)
