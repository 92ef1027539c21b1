"""Tells an engine that works from one that hangs. Decisions are pure.

vLLM's /health says only that the engine has not errored: a hung one answers 200. Its step counter shows it, and,
while a start is under way, its log and its processor time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from shared_engine.runtime.metrics import counters, samples
from shared_engine.supervisor.http import http

METRICS_TIMEOUT_S = 5.0
MAX_POLL_S = 10.0
# A start that only wakes up to look whether something has come uses less of a core than this.
IDLE_CPU_SHARE = 0.01
# One that could go on, but has waited for a processor for more than this share of the time, is starved.
STARVED_SHARE = 0.5
# A gap between two looks that is longer than planned by more than this factor is not the engine's doing.
MAX_GAP_FACTOR = 2.5

# vLLM's names. Steps: a histogram with one entry for each.
_STEPS = "iteration_tokens_total_count"
_REQUESTS = ("num_requests_running", "num_requests_waiting")
RANK_HEADER = "X-data-parallel-rank"


@dataclass(frozen=True)
class Activity:
    """What vLLM counts, by engine core: a data-parallel server has several, and one of them may hang.

    Attributes:
        steps: scheduler steps since the start.
        requests: requests running and waiting.
        counters: all that vLLM counts, for those who keep it.
    """

    steps: dict[str, float] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


def read_activity(metrics: str) -> Activity:
    """From the text of /metrics; empty where vLLM keeps no statistics (--disable-log-stats)."""
    steps: dict[str, float] = {}
    requests: dict[str, float] = {}
    for sample in samples(metrics):
        if sample.name == _STEPS:
            steps[sample.label("engine")] = sample.value
        elif sample.name in _REQUESTS:
            engine = sample.label("engine")
            requests[engine] = requests.get(engine, 0.0) + sample.value
    return Activity(steps, requests, counters(metrics))


BUSY_LIMITS = 4


class Verdict(Enum):
    FINE = "fine"
    ASK = "ask"  # an engine core does not move, but is not known to have requests: it has none, or is stuck before that
    HUNG = "hung"


class HangWatch:
    """Follows an engine while requests run. Construct when they begin.

    Attributes:
        silent: of the last look, the engine cores that have not moved for the limit though no requests of theirs are
            known: what they were sent last may never have been seen. Empty where vLLM keeps no statistics.
    """

    def __init__(self, now: float) -> None:
        self.silent: tuple[str, ...] = ()
        self._moved_at = self._answered_at = now
        self._processes = StallWatch(now)
        self._steps: dict[str, float] = {}
        self._requests: dict[str, float] = {}
        self._core_moved_at: dict[str, float] = {}
        self._stuck_since: dict[str, float] = {}

    def answered(self, now: float) -> None:
        """Those that were silent have answered."""
        self._moved_at = self._answered_at = now
        self._core_moved_at.update(dict.fromkeys(self.silent, now))

    def look(
        self, now: float, activity: Activity | None, limit_s: float, are_still: AreStill = lambda *_: True
    ) -> Verdict:
        """Judge by the answer of /metrics; None if there was none.

        HUNG: for ``limit_s`` seconds an engine core that has requests made no step, or the API server did not answer.

        Args:
            are_still: asked where vLLM keeps no statistics: one that has all the requests it takes has none to spare
                for a prompt of ours, but works. That excuses it for BUSY_LIMITS times ``limit_s``: hangs may spin.
        """
        if activity is None:
            return Verdict.HUNG if now - self._moved_at >= limit_s else Verdict.FINE
        cores = activity.steps.keys() | activity.requests.keys()
        is_excused = now - self._answered_at < BUSY_LIMITS * limit_s
        if not cores and is_excused and not are_still(self._processes, now, limit_s):
            self._moved_at = now
        for core in cores:
            steps, requests = activity.steps.get(core, 0.0), activity.requests.get(core)
            if self._steps.get(core) != steps:
                self._steps[core], self._stuck_since[core] = steps, now
                self._core_moved_at[core] = self._moved_at = now
            elif not requests:
                self._stuck_since[core] = now  # it has nothing to do
            elif not self._requests.get(core):
                # It had nothing to do at the last look.
                self._stuck_since[core] = self._core_moved_at[core] = self._moved_at = now
        self._requests = activity.requests
        self.silent = tuple(sorted(core for core in cores if now - self._core_moved_at[core] >= limit_s))
        if any(now - since >= limit_s for since in self._stuck_since.values()):
            return Verdict.HUNG
        is_silent = self.silent or (not cores and now - self._moved_at >= limit_s)
        return Verdict.ASK if is_silent else Verdict.FINE


class WatchedClock:
    """Counts time only as far as somebody looked: the machine may have been paused, or the watcher had no processor.

    Args:
        max_gap_s: what two readings are apart at most.
    """

    def __init__(self, max_gap_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_gap_s = max_gap_s
        self._clock = clock
        self._read_at = clock()
        self._watched_s = 0.0

    def now(self) -> float:
        """Seconds watched so far."""
        now = self._clock()
        self._watched_s += min(now - self._read_at, self._max_gap_s)
        self._read_at = now
        return self._watched_s


class HangDetector:
    """Asks a server that has requests, again and again, whether it moves."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """No requests are running, or the server is another one."""
        self.counters: dict[str, float] = {}
        """vLLM's, as they were seen last."""
        self._watch: HangWatch | None = None
        self._clock = WatchedClock(0.0)
        self._look_at = 0.0
        self._stopped_since: float | None = None

    async def is_hung(
        self,
        socket: str,
        model: str,
        limit_s: float,
        is_stopped: Callable[[], bool] = lambda: False,
        are_still: AreStill = lambda *_: True,
    ) -> bool:
        """True when nothing has moved for ``limit_s`` seconds; looks no more often than every hang_poll_s seconds.

        Args:
            is_stopped: a process of the server is, by a signal. Whatever the others do, it does nothing with what it
                has: one of several API servers shows in no metric.
            are_still: see HangWatch.
        """
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + hang_poll_s(limit_s)
        if self._watch is None:
            self._clock = WatchedClock(MAX_GAP_FACTOR * hang_poll_s(limit_s) + METRICS_TIMEOUT_S)
            self._watch = HangWatch(self._clock.now())
        watch, clock = self._watch, self._clock
        if not is_stopped():
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = clock.now()
        elif clock.now() - self._stopped_since >= limit_s:
            return True
        activity = await read_metrics(socket)
        if activity is not None:
            self.counters = activity.counters
        verdict = watch.look(clock.now(), activity, limit_s, are_still)
        if verdict is not Verdict.ASK:
            return verdict is Verdict.HUNG
        # Only where there are several does it matter which of them answers.
        silent = watch.silent if activity is not None and len(activity.steps) > 1 else (None,)
        answers = [answers_a_prompt(socket, model, limit_s, core) for core in silent]
        if all(await asyncio.gather(*answers)):
            watch.answered(clock.now())
            return False
        # Others may have come before that prompt, and it works for them.
        activity = await read_metrics(socket)
        return watch.look(clock.now(), activity, limit_s, are_still) is not Verdict.FINE


def hang_poll_s(limit_s: float) -> float:
    return min(limit_s / 4, MAX_POLL_S)


class StallWatch:
    """Follows processes, as those of a start: they move as long as they write (a log, files they download), or use a
    processor, or would if they had one.
    """

    def __init__(self, now: float) -> None:
        self._moved_at = now
        self._written_bytes = -1
        self._cpu_s = 0.0
        self._waited_s = 0.0

    def is_stalled(
        self,
        now: float,
        written_bytes: int,
        cpu_s: float,
        waited_s: float,
        limit_s: float,
        is_runnable: Callable[[], bool] = lambda: False,
    ) -> bool:
        """True when nothing has moved for ``limit_s`` seconds.

        Args:
            is_runnable: asked last: a thread that could go on, and gets no processor, does not hang.
        """
        quiet_s = now - self._moved_at
        cpu_use_s = cpu_s - self._cpu_s  # below 0 when a process has ended, which is a sign of life too
        is_used = cpu_use_s < 0 or cpu_use_s > IDLE_CPU_SHARE * max(quiet_s, 1.0)
        is_starved = waited_s - self._waited_s > STARVED_SHARE * quiet_s or (quiet_s >= limit_s and is_runnable())
        if written_bytes != self._written_bytes or is_used or is_starved:
            self._moved_at, self._written_bytes, self._cpu_s, self._waited_s = now, written_bytes, cpu_s, waited_s
            return False
        return quiet_s >= limit_s


AreStill = Callable[[StallWatch, float, float], bool]
"""Whether the processes of a server have done nothing for so long, by what a StallWatch has seen of them: watch, now,
limit in seconds."""


async def read_metrics(socket: str) -> Activity | None:
    """What vLLM counts; None if it does not answer."""
    try:
        status, body = await http(socket, "GET", "/metrics", METRICS_TIMEOUT_S)
    except OSError:
        return None
    return read_activity(body.decode(errors="replace")) if status == 200 else Activity()


async def answers_a_prompt(socket: str, model: str, timeout: float, core: str | None = None) -> bool:
    """True when vLLM answers a prompt of one token, or refuses it (a pooling model); False if it stays silent.

    Args:
        core: the one that is to answer, of a data-parallel server; None for whichever vLLM picks.
    """
    prompt = {"model": model, "prompt": [1], "max_tokens": 1}
    headers = {} if core is None else {RANK_HEADER: core}
    try:
        await http(socket, "POST", "/v1/completions", timeout, prompt, headers)
    except OSError:
        return False
    return True
