"""How a loaded engine ends: somebody wants it gone, or it has died."""

from __future__ import annotations

from shared_engine.runtime.life_stats import EvictionReason
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.supervisor.engine_process import TERM_GRACE_S
from shared_engine.supervisor.owned_engine import OwnedEngine
from shared_engine.supervisor.work import Work


class Stop(Work):
    """End the server, in whichever state the engine is. The launcher stays on standby, if it is wanted.

    Args:
        why: in words, for the log.
        grace_s: how long the server may take to end by itself: vLLM waits for its requests in flight.
    """

    def __init__(self, engine: OwnedEngine, reason: EvictionReason, why: str, grace_s: float = TERM_GRACE_S) -> None:
        self._engine = engine
        self._reason = reason
        self._why = why
        self._grace_s = grace_s

    async def run(self) -> None:
        engine = self._engine
        if not engine.is_at_rest:
            life = engine.keeper.record.life
            if engine.is_loaded:
                life = life.evicted(self._reason).ended(await engine.counters())
            engine.keeper.enter(EngineState.STOPPING, self._why, progress=None, life=life)
            await engine.process.end_server(self._grace_s)
            engine.enter_rest(
                EngineState.STANDBY if self._keeps_standby() else EngineState.STOPPED, "the server is gone"
            )
        engine.lease.give_back()

    def _keeps_standby(self) -> bool:
        engine = self._engine
        return engine.callers.policy.standby_ttl_s > 0 and not engine.is_shutting_down and engine.process.is_on_standby


class RecordDeath(Work):
    """The server died, or hangs, or has to go at once: end what is left of it, and record how it died."""

    def __init__(self, engine: OwnedEngine, how: str, *, is_from_outside: bool = False) -> None:
        self._engine = engine
        self._how = how
        self._is_from_outside = is_from_outside

    async def run(self) -> None:
        engine = self._engine
        if engine.is_at_rest:
            return
        failure = Failure(FailureKind.DIED, self._how, engine.log.tail(), self._is_from_outside)
        engine.keeper.publish_death(failure)  # those whose requests it ends ask why at once
        await engine.process.end_server()
        engine.enter_rest(EngineState.FAILED, self._how, failure)
