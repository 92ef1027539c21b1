"""What a loaded engine does at this moment, as its server says. Asking keeps no engine awake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from shared_engine.observe.engine_info import EngineInfo
from shared_engine.runtime.metrics import totals
from shared_engine.supervisor.http import http

ANSWER_TIMEOUT_S = 1.0


class Activity(NamedTuple):
    """Requests in a server."""

    running: int
    waiting: int


async def activities(engines: Sequence[EngineInfo]) -> list[Activity | None]:
    """Of each engine; None where no server answers in time."""
    return await asyncio.gather(*map(_activity, engines))


async def _activity(engine: EngineInfo) -> Activity | None:
    if engine.socket is None:
        return None
    try:
        status, body = await http(engine.socket, "GET", "/metrics", ANSWER_TIMEOUT_S)
    except OSError:
        return None
    found = totals(body.decode(errors="replace")) if status == 200 else {}
    if "num_requests_running" not in found:
        return None
    return Activity(int(found["num_requests_running"]), int(found.get("num_requests_waiting", 0)))
