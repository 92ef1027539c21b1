"""Looks at an engine that is loaded: has it died, is it idle, does it hang?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from shared_engine.machine.sockets import has_listener
from shared_engine.runtime.keep_policy import IdleStep, KeepPolicy, idle_step
from shared_engine.runtime.record import EngineState
from shared_engine.supervisor.hangs import HangDetector, hang_poll_s
from shared_engine.supervisor.owned_engine import OwnedEngine

BUSY_POLL_S = 1.0
MIN_POLL_S = 0.05
LEASE_GRACE_S = 1.0
END_GRACE_S = 1.0
LONGEST_WAIT_S = 3600.0


class Step(Enum):
    """What a look at a loaded engine asks for."""

    WAIT = "wait"  # look again later
    SLEEP = "sleep"  # it is idle: its weights go to RAM
    EVICT = "evict"  # it is idle: the model leaves memory
    DEAD = "dead"  # it has died, or hangs


@dataclass(frozen=True)
class Sight:
    """What one look has shown.

    Attributes:
        step: SLEEP and EVICT hold the lease exclusively, so that nobody can lease the engine meanwhile.
        why: in words, for the log.
        is_from_outside: of DEAD: somebody else has ended it.
        wait_s: seconds until the next look.
    """

    step: Step
    why: str = ""
    is_from_outside: bool = False
    wait_s: float = LONGEST_WAIT_S


def step_when_idle(policy: KeepPolicy, *, idle_s: float, is_asleep: bool, can_sleep: bool, grace_s: float) -> Sight:
    """Decide for an engine that nobody uses.

    Args:
        grace_s: how long those who waited for it still have to take their lease, however short they want it kept.
    """
    step, wait_s = idle_step(policy, idle_s, is_asleep=is_asleep, can_sleep=can_sleep)
    wait_s = min(wait_s, hang_poll_s(policy.stall_timeout_s), LONGEST_WAIT_S)  # nothing signals a first request
    if step is IdleStep.KEEP:
        return Sight(Step.WAIT, wait_s=wait_s)
    if grace_s > 0:
        return Sight(Step.WAIT, wait_s=grace_s)
    return Sight(Step.EVICT if step is IdleStep.EVICT else Step.SLEEP, f"idle for {idle_s:.1f} s")


class Watch:
    """Looks again and again at one engine."""

    def __init__(self, engine: OwnedEngine) -> None:
        self._engine = engine
        self._hang_detector = HangDetector()
        self._seen_busy_at = 0.0
        self._start_seen = 0
        self.refuses_to_sleep = False
        """vLLM has refused to; asking again would do no good until the next start."""

    async def look(self) -> Sight:
        """One look at an engine that is loaded."""
        engine = self._engine
        record = engine.keeper.record
        if self._start_seen != record.start_number:
            self._start_seen, self.refuses_to_sleep = record.start_number, False
            self._hang_detector.forget()
        is_listening = has_listener(record.socket)
        # A process that ends closes its sockets first; vLLM that was asked to end may go on without for minutes.
        end = await engine.process.end_within(0.0 if is_listening else END_GRACE_S)
        if end is not None:
            return Sight(Step.DEAD, end.words, end.is_from_outside)
        if not is_listening:
            return Sight(Step.DEAD, "vLLM no longer listens on its socket", is_from_outside=True)
        policy = engine.callers.policy
        if not engine.lease.try_take():
            self._seen_busy_at = time.monotonic()
            if record.state is EngineState.READY and await self._is_hung(record.socket, record.model, policy):
                limit_s = policy.stall_timeout_s
                why = f"it hung: requests were running and nothing moved for stall_timeout_s = {limit_s:g} s"
                return Sight(Step.DEAD, why, is_from_outside=engine.process.was_stopped())
            poll_s = min(policy.idle_ttl_s, policy.sleep_after_s, policy.stall_timeout_s, BUSY_POLL_S)
            return Sight(Step.WAIT, wait_s=max(MIN_POLL_S, poll_s))
        self._hang_detector.forget()
        sight = step_when_idle(
            policy,
            idle_s=time.monotonic() - max(engine.lease.last_use(), self._seen_busy_at, engine.ready_at),
            is_asleep=record.state is EngineState.ASLEEP,
            can_sleep=engine.can_sleep and not self.refuses_to_sleep,
            grace_s=self.grace_s(),
        )
        if sight.step is Step.WAIT:
            engine.lease.give_back()
        return sight

    def grace_s(self) -> float:
        """How long those who waited for the engine still have to take their first lease; 0 when that is over."""
        engine = self._engine
        if engine.keeper.state is not EngineState.READY or engine.lease.last_use() >= engine.ready_at:
            return 0.0
        return max(0.0, engine.ready_at + LEASE_GRACE_S - time.monotonic())

    async def _is_hung(self, socket: str, model: str, policy: KeepPolicy) -> bool:
        process = self._engine.process
        server, limit_s = process.server, policy.stall_timeout_s
        is_hung = await self._hang_detector.is_hung(socket, model, limit_s, process.was_stopped, process.are_still)
        self._engine.seen_counters = self._hang_detector.counters or self._engine.seen_counters
        # It may have ended meanwhile, and another may have taken its place.
        return is_hung and process.server is server and server is not None and not server.ended.done()
