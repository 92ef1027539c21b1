"""OwnedEngine: what a supervisor owns, for all who work on it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from shared_engine.machine.gpu import ORDER
from shared_engine.machine.memory import MemoryNeed
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.lease import ExclusiveLease
from shared_engine.runtime.log_level import chosen_level
from shared_engine.runtime.metrics import counters
from shared_engine.runtime.progress import ProgressReader, StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.runtime.spec import read_spec
from shared_engine.supervisor.backoff import Backoff
from shared_engine.supervisor.callers import Callers
from shared_engine.supervisor.changes import Changes
from shared_engine.supervisor.engine_process import EngineProcess, StartFailedError
from shared_engine.supervisor.eviction import DeviceAdmission
from shared_engine.supervisor.http import http
from shared_engine.supervisor.ownership import Ownership
from shared_engine.supervisor.record_keeper import RecordKeeper
from shared_engine.supervisor.start_lock import StartLock

AT_REST = (EngineState.STOPPED, EngineState.STANDBY, EngineState.FAILED)
LOADED = (EngineState.READY, EngineState.ASLEEP)
ROOM_POLL_S = 0.2
COUNTERS_TIMEOUT_S = 1.0
REPORT_S = 0.1


class OwnedEngine:
    """One engine's files, processes and callers.

    Args:
        lock_fd: supervisor.lock, held by this process.
    """

    def __init__(self, directory: RuntimeDir, lock_fd: int) -> None:
        self.directory = directory
        self.spec = read_spec(directory.spec)
        self.changes = Changes()
        self.callers = Callers()
        self.backoff = Backoff()
        self.lease = ExclusiveLease(directory.lease)
        self.log = EngineLog(directory.log, chosen_level(os.environ) or logging.INFO)
        self.progress = ProgressReader(StartPhase.IMPORT)
        self.keeper = RecordKeeper(directory, self.spec, Ownership(directory, lock_fd), self.log, self.changes)
        self.process = EngineProcess(directory, self.spec, self.log, self.progress)
        need = MemoryNeed(self.spec.memory_share, self.spec.memory_bytes)
        order = self.spec.environment.get(ORDER, os.environ.get(ORDER))
        self.admission = DeviceAdmission(directory, self.spec.devices, need, self.report_queued, self.log.note, order)
        self.is_shutting_down = False
        """Once the engine has ended there will be no standby, and no other start."""
        self.seen_counters: dict[str, float] = {}
        """vLLM's, when the server was asked last; while requests run that is every few seconds."""
        self.ready_at = 0.0
        """time.monotonic() when it could be leased the last time."""

    @property
    def is_at_rest(self) -> bool:
        """No server process is left, and its memory is back."""
        return self.keeper.state in AT_REST

    @property
    def is_loaded(self) -> bool:
        return self.keeper.state in LOADED

    @property
    def can_sleep(self) -> bool:
        return "--enable-sleep-mode" in self.spec.argv

    @asynccontextmanager
    async def admitted(self, policy: KeepPolicy, held_by: Collection[int] = ()) -> AsyncIterator[None]:
        """Waits for room on its devices, then is the only one that starts, or wakes, there.

        Args:
            held_by: see DeviceAdmission.make_room.

        Raises:
            StartFailedError: nobody waits for the engine any more.
        """
        while True:
            lock = StartLock(
                self.directory.path.parent,
                await self.admission.devices(),
                self.keeper.name,
                lambda other: self.report_queued(f"{other or 'another engine'} starts"),
            )
            async with lock:
                if await self.admission.make_room(policy.max_loaded_engines, held_by):
                    yield
                    return
            if not self.callers.are_waiting:
                message = "given up while it waited for the device: nobody waits for the engine any more"
                raise StartFailedError(Failure(FailureKind.TIMEOUT, message, is_from_outside=True))
            # Without the lock meanwhile: an engine that must go first may need it to wake, and be used.
            await asyncio.sleep(ROOM_POLL_S)

    @asynccontextmanager
    async def progress_reported(self) -> AsyncIterator[None]:
        """Meanwhile callers and the record get the start's progress."""

        async def report() -> None:
            while True:
                progress, launcher_pid = self.progress.progress, self.process.launcher_pid
                if progress != self.keeper.record.progress or launcher_pid != self.keeper.record.launcher_pid:
                    self.keeper.publish(progress=progress, launcher_pid=launcher_pid)
                    self.callers.report(progress)
                await asyncio.sleep(REPORT_S)

        reporting = asyncio.create_task(report())
        try:
            yield
        finally:
            reporting.cancel()

    def report_queued(self, why: str) -> None:
        """The start waits for the device."""
        self.progress.enter(StartPhase.QUEUED, why)

    def enter_rest(self, state: EngineState, reason: str, failure: Failure | None = None) -> None:
        """The server is gone: requests may ask for another start."""
        self.lease.give_back()
        life = self.keeper.record.life
        if failure is not None:
            life = life.failed(failure.counted_as).ended(self.seen_counters)
        self.seen_counters = {}
        gone: dict[str, Any] = {"server_pid": 0, "tcp": (), "shared_files": (), "progress": None}
        self.keeper.enter(state, reason, failure=failure, life=life, **gone)

    async def counters(self) -> dict[str, float]:
        """vLLM's counters as they are now; as they were seen last, where it does not answer."""
        try:
            status, body = await http(self.keeper.record.socket, "GET", "/metrics", COUNTERS_TIMEOUT_S)
        except OSError:
            return self.seen_counters
        return counters(body.decode(errors="replace")) if status == 200 else self.seen_counters

    def admit_requests(self) -> None:
        """The server answers: it may be leased."""
        self.ready_at = time.monotonic()
        self.lease.give_back()

    def failure_of(self, error: StartFailedError | OSError) -> Failure:
        """Of a start, or a wake, that ended so. An OSError: the machine refuses what it needs, as a full disk does."""
        if isinstance(error, StartFailedError):
            return error.failure
        return Failure(FailureKind.START, f"the engine did not start: {error or type(error).__name__}", self.log.tail())

    def start_timeout_failure(self, limit_s: float, *, goes_on: bool = False) -> Failure:
        """That a caller has waited for ``limit_s`` seconds, and, of a start that goes on, what it was doing."""
        progress = self.progress.progress
        message = f"the engine was not ready after start_timeout_s = {limit_s:g} s"
        if goes_on:
            message += f": it was {progress} for {time.time() - progress.since:.1f} s; the start goes on"
        return Failure(FailureKind.TIMEOUT, message, self.log.tail())
