"""One start of the server: from a request that waits to an engine that may be leased."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shared_engine.launcher.about import ABOUT
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.progress import StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.supervisor.engine_process import StartFailedError
from shared_engine.supervisor.http import http
from shared_engine.supervisor.owned_engine import OwnedEngine
from shared_engine.supervisor.work import Work

REPORT_TIMEOUT_S = 10.0


class Start(Work):
    """Import vLLM if no launcher is on standby, wait for the device, fork a server, wait until it answers."""

    can_be_cancelled = True

    def __init__(self, engine: OwnedEngine) -> None:
        self._engine = engine
        self._began = time.monotonic()

    async def run(self) -> Failure | None:
        engine = self._engine
        policy = engine.callers.begin_start()
        is_return = engine.process.is_on_standby
        engine.log.clear()
        previous = engine.keeper.record.failure
        if previous is not None and previous.kind is not FailureKind.DIED:
            # The caller may have fixed the cause there: a token, a proxy.
            await engine.process.end_launcher_of_another(engine.callers.environment)
        engine.admission.made_room = ()
        engine.progress.begin(StartPhase.IMPORT)
        fields = {**engine.keeper.next_start(), **engine.callers.kept}
        engine.keeper.enter(EngineState.STARTING, "a request waits", failure=None, **fields)
        try:
            async with engine.progress_reported():
                await self._bring_up(policy, is_return=is_return)
        except (StartFailedError, OSError) as exc:
            return await self._give_up(engine.failure_of(exc))
        return None

    async def _bring_up(self, policy: KeepPolicy, *, is_return: bool) -> None:
        engine = self._engine
        await engine.process.preload(engine.callers.environment, policy.stall_timeout_s)
        async with engine.admitted(policy):
            try:
                await self._serve_or_make_room(policy)
            except BaseException:
                self.is_giving_up = True
                await engine.process.end_server()  # before the next engine starts, which measures the memory
                raise
            self._be_ready(await limits(engine.keeper.record.socket), is_return=is_return)

    async def _serve_or_make_room(self, policy: KeepPolicy) -> None:
        """One more try, where memory was short and idle engines have left the device."""
        engine = self._engine
        try:
            try:
                await self._serve(policy)
            except StartFailedError as exc:
                if exc.failure.kind is not FailureKind.MEMORY or not await engine.admission.evict_all_idle():
                    raise
                await engine.process.end_server()
                engine.keeper.publish(**engine.keeper.next_start())
                await self._serve(policy)
        except StartFailedError as exc:
            raise StartFailedError(naming_those_that_stay(exc.failure, engine.admission.refused)) from exc

    async def _serve(self, policy: KeepPolicy) -> None:
        engine = self._engine
        # At once, unless the launcher has died since: with the server, when memory was short, or while this one waited.
        await engine.process.preload(engine.callers.environment, policy.stall_timeout_s)
        await engine.process.serve(engine.keeper.record.socket, policy.stall_timeout_s, engine.keeper.publish)

    def _be_ready(self, limits: Mapping[str, int | None], *, is_return: bool) -> None:
        engine = self._engine
        assert engine.process.server is not None
        engine.process.server.ended.add_done_callback(lambda _: engine.changes.note())
        engine.process.give_way()
        engine.backoff.succeeded()
        engine.admit_requests()
        took_s = round(time.monotonic() - self._began, 3)
        files = engine.process.shared_files
        reason = f"the server answers after {took_s} s"
        engine.keeper.enter(
            EngineState.READY,
            reason,
            start_s=took_s,
            progress=None,
            shared_files=files,
            **limits,
            life=engine.keeper.record.life.started(engine.progress.took_s(), is_return=is_return),
            made_room=engine.admission.made_room,
        )

    async def _give_up(self, failure: Failure) -> Failure:
        """End what is left of a start that failed."""
        engine = self._engine
        self.is_giving_up = True
        await engine.process.end_server()
        if failure.kind is FailureKind.NO_GPU:
            await engine.process.end_launcher()  # no start from it will go better
        if failure.is_from_outside:
            engine.backoff.was_killed()
        else:
            engine.backoff.failed()
        engine.enter_rest(EngineState.FAILED, failure.message, failure)
        return failure


async def limits(socket: str) -> dict[str, int | None]:
    """What a server that is ready reports, as the record has it; None for what it does not."""
    return {
        "max_model_len": await _told(socket, "/v1/models", lambda told: told["data"][0]["max_model_len"]),
        "max_num_seqs": await _told(socket, ABOUT, lambda told: told["max_num_seqs"]),
    }


async def _told(socket: str, path: str, number: Callable[[Any], Any]) -> int | None:
    """A number in a server's answer; None where it does not answer so: then that is all that is missing."""
    try:
        status, body = await http(socket, "GET", path, REPORT_TIMEOUT_S)
        told = number(json.loads(body)) if status == 200 else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return told if isinstance(told, int) else None


def naming_those_that_stay(failure: Failure, refused: Mapping[str, str]) -> Failure:
    """A failure for lack of memory, with the engines that hold some and why they stay; others as they are.

    Args:
        refused: why, by the engine's name.
    """
    if failure.kind is not FailureKind.MEMORY or not refused:
        return failure
    names = ", ".join(f"{name} ({why})" for name, why in refused.items())
    return replace(failure, message=f"{failure.message}; also loaded on the device: {names}")
