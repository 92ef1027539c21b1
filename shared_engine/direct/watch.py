"""Tells a direct engine that hangs: while it starts, and while requests run. As the supervisor does for a local one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from shared_engine.direct.children import Children
from shared_engine.machine.hub_cache import bytes_on_disk, cached_model
from shared_engine.machine.proc import cpu_seconds, group_members, is_runnable, waited_seconds
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.hangs import (
    MAX_GAP_FACTOR,
    HangWatch,
    StallWatch,
    Verdict,
    WatchedClock,
    hang_poll_s,
    read_activity,
)

START_POLL_S = 1.0


class StartWatch:
    """Follows a start; to be asked every ``poll_s`` seconds."""

    def __init__(self, spec: EngineSpec, children: Children, log: Path, limit_s: float) -> None:
        self.poll_s = min(limit_s / 10, START_POLL_S)
        self._children = children
        self._log = log
        self._limit_s = limit_s
        self._clock = WatchedClock(MAX_GAP_FACTOR * self.poll_s)
        self._watch = StallWatch(self._clock.now())
        argv = spec.argv
        folder = argv[argv.index("--download-dir") + 1] if "--download-dir" in argv else None
        self._cached = None if os.path.exists(spec.model) else cached_model(spec.model, os.environ, folder)

    def has_stalled(self) -> bool:
        """True when nothing has moved for ``stall_timeout_s``: vLLM's processes, or, before there are any, this one."""
        pids = [pid for leader in self._children.pids for pid in group_members(leader)] or [os.getpid()]
        written = 0 if self._cached is None else bytes_on_disk(self._cached)
        written += self._log.stat().st_size if self._log.exists() else 0
        return self._watch.is_stalled(
            self._clock.now(),
            written,
            cpu_seconds(pids),
            waited_seconds(pids),
            self._limit_s,
            lambda: is_runnable(pids),
        )


class StepWatch:
    """Follows the steps of vLLM's scheduler while requests run.

    Args:
        metrics: vLLM's metrics as text.
    """

    def __init__(self, metrics: Callable[[], str], limit_s: float) -> None:
        self.poll_s = hang_poll_s(limit_s)
        self._metrics = metrics
        self._limit_s = limit_s
        self._watch: HangWatch | None = None
        self._clock = WatchedClock(MAX_GAP_FACTOR * self.poll_s)
        self._look_at = 0.0

    async def is_hung(self, answers: Callable[[], Awaitable[object]], *, has_requests: bool) -> bool:
        """True when no step was made for ``stall_timeout_s``, though there are requests.

        Args:
            answers: asks each EngineCore something; where vLLM's metrics know of no request, it may not have reached
                it.
        """
        now = time.monotonic()
        if not has_requests:
            self._watch = None
        elif self._watch is None:
            self._clock = WatchedClock(MAX_GAP_FACTOR * self.poll_s)
            self._watch = HangWatch(self._clock.now())
        elif now >= self._look_at:
            self._look_at = now + self.poll_s / 2
            verdict = self._watch.look(self._clock.now(), read_activity(self._metrics()), self._limit_s)
            if verdict is not Verdict.ASK:
                return verdict is Verdict.HUNG
            try:
                async with asyncio.timeout(self._limit_s):
                    await answers()
            except TimeoutError:
                return True
            self._watch.answered(self._clock.now())
        return False
