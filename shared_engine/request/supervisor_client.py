"""SupervisorClient: a leased, ready engine, from the one there is, one that starts, or one that is started for it.

Clients never decide from a state they read earlier: they ask the supervisor for the outcome. The record is read only
to skip the asking when the engine is ready, and only while holding the lease, which forbids eviction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable

from shared_engine.errors import (
    EngineDiedError,
    EngineError,
    EngineNotInstalledError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineStoppedError,
)
from shared_engine.launch.fit import misfit_of
from shared_engine.launch.spec import launch_environment
from shared_engine.machine.hub_cache import called
from shared_engine.request.progress_bar import StartReporter
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.spawn import SUPERVISOR_START_S, Spawner
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.control import Control
from shared_engine.runtime.directory import runtime_dir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.lease import Lease
from shared_engine.runtime.messages import Fate, Outcome, Ready, StartFailed
from shared_engine.runtime.outcome import outcome_of
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import EngineState, FailureKind, Record, is_supervised, read_record
from shared_engine.runtime.spec import EngineSpec

MAX_SPAWNS, MAX_CRASHES = 10, 3
OUTCOME_TIMEOUT_S = 10.0
SIGN_OF_LIFE_S = 10.0
ANSWERS_S = 2.0

_log = logging.getLogger("shared_engine")


class SupervisorClient:
    """This process's hold on one engine; one per process and spec, whatever number of objects and loops use it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.directory = runtime_dir(spec.key)
        self.control = Control(self.directory)
        self._spawner = Spawner(spec, self.control)
        self._lease = Lease(self.directory.lease)
        self._known: tuple[tuple[int, int], Record] | None = None
        self._sent: set[tuple[KeepPolicy, Ready]] = set()
        """Which policies the supervisor got since the engine became ready."""
        self._asking = SharedTasks()
        self._told_of: set[tuple[str, ...]] = set()

    async def acquire(self, policy: KeepPolicy, *, show_progress: bool) -> Record:
        """Return the record of a ready engine, with a lease on it: give it back with ``release``.

        Raises:
            EngineStartError: the engine did not come up (EngineStartTimeoutError, EngineNotInstalledError).
            SettingsError: the runtime directory can't be used.
        """
        deadline = time.monotonic() + policy.start_timeout_s + SUPERVISOR_START_S
        while True:
            record = self.try_acquire(policy)
            if record is not None:
                return record
            if time.monotonic() > deadline:
                raise EngineStartTimeoutError(
                    f"{self.spec.model} was reported ready but could not be leased before the deadline; "
                    f"see {self.directory.log}"
                )
            await self._ensure_ready_once(policy, deadline, show_progress)

    def release(self) -> None:
        """End one request's hold."""
        self._lease.give_back()

    def try_acquire(self, policy: KeepPolicy) -> Record | None:
        """As ``acquire``, of an engine that is ready and has heard of this policy; else None."""
        if not self._sent or not self._lease.try_take():
            return None
        record = self._current_record()
        # Each start must get this caller's policy once, else the engine might be evicted too early.
        if record is None or not record.is_usable or (policy, _ready(record)) not in self._sent:
            self._lease.give_back()
            return None
        return record

    def is_up(self) -> bool:
        """Whether the record has it so that the engine answers; its supervisor may have been killed since."""
        record = self._current_record()
        return record is not None and record.is_usable

    def _current_record(self) -> Record | None:
        """The record, read again only when the file is another one than last time."""
        try:
            status = os.stat(self.directory.record)
        except FileNotFoundError:
            return None
        signature = (status.st_mtime_ns, status.st_ino)
        if self._known is None or self._known[0] != signature:
            record = read_record(self.directory.record)
            if record is None:
                return None
            self._known = (signature, record)
        return self._known[1]

    async def _ensure_ready_once(self, policy: KeepPolicy, deadline: float, show_progress: bool) -> None:
        """All requests of this loop that wait, wait for one asking. Cancelling one stops its waiting only."""
        is_joining = self._asking.is_running(policy)
        try:
            await self._asking.run(policy, lambda: self._ensure_ready(policy, deadline, show_progress))
        except EngineStartTimeoutError:
            # Whoever began it has waited for long enough; one that came later has time left.
            if not is_joining or time.monotonic() > deadline - SUPERVISOR_START_S:
                raise

    async def _ensure_ready(self, policy: KeepPolicy, deadline: float, show_progress: bool) -> None:
        """Ask the supervisor, and start one if there is none."""
        await in_a_thread(self._refuse_misfit)
        self.directory.prepare()
        reporter = StartReporter(self.spec.model, show_progress)
        error: BaseException | None = None
        try:
            reply = await self._reply(policy, deadline, reporter.report)
            if isinstance(reply, StartFailed):
                raise start_error(reply)
            self._sent = {sent for sent in self._sent if sent[1] == reply} | {(policy, reply)}
            self._tell_of_evictions(reply)
        except BaseException as exc:
            error = exc
            raise
        finally:
            reporter.close(error)

    def _tell_of_evictions(self, ready: Ready) -> None:
        """Once for each set of engines: an app that uses them in turn would start one of them at each change."""
        record = self._current_record()
        if record is None or record.start_number != ready.start_number or not record.made_room:
            return
        gone, spec = ", ".join(record.made_room), self.spec
        if spec.memory_share:
            remedy = f"lower gpu_memory_utilization of each (it is {spec.memory_share:g} here)"
        else:
            remedy = "lower engine_args={'kv_cache_memory_bytes': ...} of each"
        if record.made_room not in self._told_of:
            self._told_of.add(record.made_room)
            _log.warning(
                "%s made room for %s: %s has not enough memory for both. An app that uses them in turn starts one at "
                "each change; to keep both loaded, %s",
                gone,
                called(spec.model),
                ", ".join(spec.devices),
                remedy,
            )

    def _refuse_misfit(self) -> None:
        """Before anything of an engine is there: what can't run here would tell so only after seconds."""
        with contextlib.suppress(OSError):  # a directory that can't be used is told with its cause
            if is_supervised(self.directory):
                return
        misfit = misfit_of(self.spec, launch_environment(os.environ))
        if misfit is not None:
            raise EngineStartError(f"the engine was not started: {misfit}", is_of_device=True)

    async def _reply(
        self, policy: KeepPolicy, deadline: float, report: Callable[[Progress], None]
    ) -> Ready | StartFailed:
        """Of the supervisor that there is, or of one that is started."""
        environment, crashes = launch_environment(os.environ), 0
        for spawned in range(MAX_SPAWNS):  # one may exit, because somebody else asked it to, just when it is asked
            try:
                reply = None
                async with self._watched(policy.stall_timeout_s):
                    reply = await self.control.ensure_ready(policy, environment, deadline - time.monotonic(), report)
            except TimeoutError:
                raise EngineStartTimeoutError(
                    f"the supervisor of {self.spec.model} did not reply in time; see {self.directory.log}"
                ) from None
            if reply is not None:
                return reply
            # It has exited, or was stopped by a signal and has been ended for that.
            crashes += spawned > 0 and self._has_crashed()
            if crashes == MAX_CRASHES:
                break
            await self._spawner.ensure_listening(deadline)
        raise EngineStartError(
            f"several supervisors of {self.spec.model} in a row ended before they replied; see {self.directory.log}",
            self._spawner.log_tail(),
        )

    def _has_crashed(self) -> bool:
        """Whether the last supervisor ended in the middle of its work, unasked: each may cost a whole start."""
        record = read_record(self.directory.record)
        return record is not None and record.state is not EngineState.STOPPED and not is_supervised(self.directory)

    @contextlib.asynccontextmanager
    async def _watched(self, stall_timeout_s: float) -> AsyncIterator[None]:
        """Meanwhile the supervisor is asked now and then whether it lives. One that was stopped by a signal would never
        reply: it is ended, and what happens inside is left.

        Raises:
            EngineStartTimeoutError: one that was not stopped did not for ``stall_timeout_s`` seconds.
        """
        waiting = asyncio.current_task()
        assert waiting is not None
        is_silent = False

        async def watch() -> None:
            nonlocal is_silent
            heard_at = time.monotonic()
            while time.monotonic() - heard_at < stall_timeout_s:
                await asyncio.sleep(min(SIGN_OF_LIFE_S, stall_timeout_s / 2))
                with contextlib.suppress(TimeoutError, OSError, EngineError):
                    await self.control.what_became_of(0, min(SIGN_OF_LIFE_S, stall_timeout_s / 2))
                    heard_at = time.monotonic()
            is_silent = True
            waiting.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not is_silent:
                raise
            waiting.uncancel()
            if await self._answers_again():
                return
            record = self._current_record()
            pid = 0 if record is None else record.supervisor_pid
            raise EngineStartTimeoutError(
                f"the supervisor of {self.spec.model} (process {pid}) has not replied for stall_timeout_s = "
                f"{stall_timeout_s:g} s: `kill -KILL {pid}` ends it and its engine; the next request starts another"
            ) from None
        finally:
            watching.cancel()

    async def death_of(self, start_number: int) -> EngineDiedError | EngineStoppedError | None:
        """After a request lost its connection: the end of that engine, or None where it has not ended."""
        # The record may be one that a killed supervisor left behind: the next request asks before it believes it.
        self._sent = set()
        outcome = await self._asking.run(start_number, lambda: self._outcome(start_number))
        return end_error(outcome)

    async def _outcome(self, start_number: int) -> Outcome | None:
        """None where the supervisor was killed."""
        try:
            try:
                outcome = await self.control.what_became_of(start_number, OUTCOME_TIMEOUT_S)
            except TimeoutError:
                if not await self._answers_again():
                    raise
                outcome = await self.control.what_became_of(start_number, OUTCOME_TIMEOUT_S)
        except (OSError, EngineError):  # it can't be asked (TimeoutError is one): the request's own error says more
            return Outcome(Fate.RUNNING)
        if outcome is not None:
            return outcome
        # One that has exited left the record of how its engine ended; one that was killed left it as it ran.
        record = read_record(self.directory.record)
        left = None if record is None else outcome_of(record, start_number, first_start=0, deaths={})
        return None if left == Outcome(Fate.RUNNING) else left

    async def _answers_again(self) -> bool:
        """Of a supervisor that was silent: True once it is gone, as it was stopped by a signal; or where it, or another
        one that somebody else has put in its place, answers.
        """
        if await self.control.end_stopped():
            _log.warning("the supervisor of %s was stopped by a signal, and was ended", called(self.spec.model))
            return True
        try:
            await self.control.what_became_of(0, ANSWERS_S)
        except (OSError, EngineError):
            return False
        return True

    def forget_in_child(self) -> None:
        """After a fork, in the child: start with no lease."""
        self._lease.forget_in_child()
        self._spawner.forget_in_child()
        self._asking.forget()


_clients: dict[str, SupervisorClient] = {}
_clients_guard = threading.Lock()


def _ready(record: Record) -> Ready:
    """What the supervisor replied when the engine of this record was ready."""
    return Ready(record.supervisor_pid, record.start_number)


def supervisor_client(spec: EngineSpec) -> SupervisorClient:
    """This process's one client for the engine of ``spec``."""
    directory = str(runtime_dir(spec.key).path)
    with _clients_guard:
        return _clients.setdefault(directory, SupervisorClient(spec))


def _forget_in_child() -> None:
    global _clients_guard
    _clients_guard = threading.Lock()
    for each in _clients.values():
        each.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)

_START_ERRORS: dict[FailureKind, type[EngineStartError]] = {
    FailureKind.TIMEOUT: EngineStartTimeoutError,
    FailureKind.NOT_INSTALLED: EngineNotInstalledError,
}


def start_error(reply: StartFailed) -> EngineError:
    """What a start that failed means to the caller."""
    failure, message = reply.failure, reply.failure.message
    if failure.kind is FailureKind.STOPPED:
        return EngineStoppedError(message)
    if reply.retry_in_s > 0:
        message += f" (this is the last start's error; the next start is allowed in {reply.retry_in_s:.1f} s)"
    is_of_device = failure.kind in (FailureKind.MEMORY, FailureKind.NO_GPU)
    return _START_ERRORS.get(failure.kind, EngineStartError)(message, failure.log_tail, is_of_device)


def end_error(outcome: Outcome | None) -> EngineDiedError | EngineStoppedError | None:
    """What the end of the engine means to a request that was running; None where it has not ended.

    Args:
        outcome: None where the supervisor was killed, and the engine with it.
    """
    if outcome is None:
        message = "the engine died with its supervisor while the request was running"
        return EngineDiedError(message, is_from_outside=True)
    if outcome.fate is Fate.RUNNING:
        return None
    if outcome.fate is Fate.STOPPED:
        return EngineStoppedError("the engine was stopped while the request was running")
    failure = outcome.failure
    if failure is None:
        message = "the engine ended while the request was running, and was started again"
        return EngineDiedError(message, is_from_outside=True)
    message = f"the engine died while the request was running: {failure.message}"
    return EngineDiedError(message, failure.log_tail, failure.is_from_outside)
