"""How long an answer in one piece is waited for: as long as the server works, and not much longer.

vLLM sends nothing of such an answer before it is whole, so silence alone says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType

from shared_engine.errors import RequestError
from shared_engine.request.client import Client
from shared_engine.request.routes import METRICS
from shared_engine.supervisor.hangs import read_activity

LOOK_TIMEOUT_S = 2.0
# One step of the scheduler may take so long: a long prompt on a CPU. What hangs for good is the supervisor's to see.
STEP_S = 30.0
SHARED_S = 1.0
ARRIVAL_S = 0.5
logger = logging.getLogger(__name__)


class Patience:
    """What runs inside ``async with`` is cancelled, with a TimeoutError, when nobody works on it any more.

    Args:
        timeout: ``is_working`` is asked after so many seconds, and again each time so many, or STEP_S, have passed.
    """

    def __init__(self, timeout: float, is_working: Callable[[], Awaitable[bool]]) -> None:
        self._timeout = timeout
        self._is_working = is_working
        self._limit = asyncio.timeout(None)
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._limit.__aenter__()
        # A timer, not a task: most answers come in time.
        self._timer = self._loop.call_later(self._timeout, self._begin_asking)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        await self._limit.__aexit__(kind, error, traceback)

    def _begin_asking(self) -> None:
        self._asking = self._loop.create_task(self._ask())

    async def _ask(self) -> None:
        while await self._is_working():
            await asyncio.sleep(max(self._timeout, STEP_S))
        self._limit.reschedule(self._loop.time())


class WorkWatch:
    """Whether a server works, by vLLM's metrics; False where it has none.

    It does if it has requests, and has made a step in the last ``timeout`` seconds, or STEP_S. All who ask at about the
    same time share one look: hundreds of them, as of a batch, would hold up the server.
    """

    def __init__(self) -> None:
        self._steps: float | None = None
        self._moved_at = 0.0
        self._look: asyncio.Task[bool] | None = None
        self._looked_at = 0.0
        self._waiting = 0

    async def is_working(self, client: Client, timeout: float) -> bool:
        now = asyncio.get_running_loop().time()
        if self._look is None or self._look.cancelled() or now - self._looked_at > min(SHARED_S, timeout / 2):
            self._look, self._looked_at = asyncio.ensure_future(self._has_requests(client)), now
        look = self._look
        self._waiting += 1
        try:
            has_requests = await asyncio.shield(look)
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                look.cancel()
        works = has_requests and now - self._moved_at < max(timeout, STEP_S)
        if works:
            logger.info("%s has not answered yet, but works; the wait goes on", client.where)
        return works

    async def _has_requests(self, client: Client) -> bool:
        for _ in range(2):
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    text = (await client.request("GET", METRICS)).decode(errors="replace")
            except (RequestError, TimeoutError):
                return False
            activity = read_activity(text)
            steps = sum(activity.steps.values())
            if steps != self._steps:
                self._steps, self._moved_at = steps, asyncio.get_running_loop().time()
            if sum(activity.requests.values()) > 0:
                return True
            await asyncio.sleep(ARRIVAL_S)  # vLLM counts a request some time after it came
        return False


_watches: weakref.WeakKeyDictionary[Client, WorkWatch] = weakref.WeakKeyDictionary()


async def is_working(client: Client, timeout: float) -> bool:
    """See WorkWatch: each server has one."""
    return await _watches.setdefault(client.base, WorkWatch()).is_working(client, timeout)
