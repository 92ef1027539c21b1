"""The sleep tier: weights go to RAM and come back (vLLM's sleep mode, level 1)."""

from __future__ import annotations

import asyncio
import logging
import time

from shared_engine.machine.gpu import gpu_memory_by_process
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.life_stats import EvictionReason
from shared_engine.runtime.progress import StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.supervisor.endings import RecordDeath
from shared_engine.supervisor.engine_process import StartFailedError
from shared_engine.supervisor.http import http
from shared_engine.supervisor.owned_engine import OwnedEngine
from shared_engine.supervisor.start import naming_those_that_stay
from shared_engine.supervisor.watch import Watch
from shared_engine.supervisor.work import Work

SLEEP_TIMEOUT_S = 120.0


class Sleep(Work):
    """Weights to RAM. The lease is held exclusively, so nobody asks the engine anything meanwhile."""

    can_be_cancelled = True

    def __init__(self, engine: OwnedEngine, watch: Watch) -> None:
        self._engine = engine
        self._watch = watch

    async def run(self) -> None:
        engine = self._engine
        trouble = await _ask_server(engine, "/sleep?level=1", SLEEP_TIMEOUT_S)
        if trouble is None:
            engine.keeper.enter(
                EngineState.ASLEEP, "idle", life=engine.keeper.record.life.evicted(EvictionReason.SLEEP)
            )
        elif trouble.startswith("HTTP"):
            self._watch.refuses_to_sleep = True
            engine.log.note(f"vLLM refuses to sleep, and stays awake: {trouble}", logging.WARNING)
        else:
            return await RecordDeath(engine, f"it did not fall asleep: {trouble}").run()
        engine.lease.give_back()


class Wake(Work):
    """Weights back to the GPU, for those who wait. A server that does not wake is ended, and another one started."""

    can_be_cancelled = True

    def __init__(self, engine: OwnedEngine) -> None:
        self._engine = engine
        self._began = time.monotonic()

    async def run(self) -> Failure | None:
        engine = self._engine
        engine.progress.begin(StartPhase.WAKE)
        try:
            async with engine.progress_reported():
                trouble = await self._ask_to_wake(engine.callers.policy)
        except (StartFailedError, OSError) as exc:
            return engine.failure_of(exc)
        finally:
            engine.keeper.publish(progress=None)
        if trouble is not None:
            await RecordDeath(engine, f"it did not wake up: {trouble}").run()
            return None
        engine.admit_requests()
        engine.keeper.enter(
            EngineState.READY,
            f"awake after {time.monotonic() - self._began:.3f} s",
            progress=None,
            life=engine.keeper.record.life.woke(engine.progress.took_s()),
        )
        return None

    async def _ask_to_wake(self, policy: KeepPolicy) -> str | None:
        engine = self._engine
        pids = engine.process.server_pids
        async with engine.admitted(policy, pids):
            if engine.admission.refused:
                await self._refuse_without_room(pids)
            engine.progress.enter(StartPhase.WAKE)
            return await _ask_server(engine, "/wake_up", policy.stall_timeout_s)

    async def _refuse_without_room(self, pids: list[int]) -> None:
        """Where others stay: vLLM that can't get its memory back has to be ended, and another start would lack it too.

        Raises:
            StartFailedError: it would not get it; it sleeps on.
        """
        lack = await self._engine.admission.lack()
        if lack is None:
            return
        counted = await asyncio.to_thread(gpu_memory_by_process)
        if any(counted.get(pid) for pid in pids):  # else it is not known what it has already, as in a container
            failure = Failure(FailureKind.MEMORY, f"the engine did not wake up: {lack}")
            raise StartFailedError(naming_those_that_stay(failure, self._engine.admission.refused))


async def _ask_server(engine: OwnedEngine, path: str, timeout: float) -> str | None:
    """What went wrong; None when the server has done it."""
    try:
        status, body = await http(engine.keeper.record.socket, "POST", path, timeout)
    except TimeoutError:
        return f"no answer in {timeout:g} s"
    except OSError as exc:
        return str(exc)
    return None if status == 200 else f"HTTP {status}: {body[:200].decode(errors='replace')}"
