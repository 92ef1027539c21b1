"""The single owner of one engine: starts it, watches it, puts it to sleep, evicts it. A detached process.

Serves the control socket and decides what is done next. It knows nothing of settings or prompts: what to start is in
spec.json, when it was used is in the lease file, who wants what comes over the control socket (runtime/messages.py).

One thread, one event loop, and at most one piece of *work* at a time (work.py): a start, a stop, falling asleep, waking
up. Nothing else changes the state; whoever wants it changed waits for the work under way, looks again, and begins
another. A caller that hangs up only stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
import traceback
from typing import NoReturn

from shared_engine.machine.process_group import reap_children
from shared_engine.runtime.control import Send, serve_callers
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.life_stats import EvictionReason
from shared_engine.runtime.messages import (
    EnsureReady,
    Evict,
    Fate,
    Gone,
    Keep,
    Kept,
    MakeRoom,
    NotUnderstood,
    Outcome,
    Ready,
    Refusal,
    Refused,
    Reply,
    Request,
    Shutdown,
    StartFailed,
    StartProgress,
    WhatBecameOf,
)
from shared_engine.runtime.outcome import outcome_of
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.supervisor.endings import RecordDeath, Stop
from shared_engine.supervisor.engine_process import TERM_GRACE_S
from shared_engine.supervisor.owned_engine import OwnedEngine
from shared_engine.supervisor.sleep import Sleep, Wake
from shared_engine.supervisor.start import Start
from shared_engine.supervisor.tcp import open_port
from shared_engine.supervisor.watch import BUSY_POLL_S, LONGEST_WAIT_S, Step, Watch
from shared_engine.supervisor.work import Work, WorkSlot

FIRST_CALLER_S = 20.0
DEATH_NOTICE_S, DEATH_POLL_S = 2.0, 0.2
KEEP_FILES_S = 10.0
MIN_WAIT_S = 0.02
_WORDS = {
    EvictionReason.ASKED: "asked to",
    EvictionReason.SHUTDOWN: "asked to shut down",
    EvictionReason.MAKE_ROOM: "another engine needs the memory",
}


class Supervisor:
    """See the module's docstring. Construct with the lock already held, on a running event loop."""

    def __init__(self, directory: RuntimeDir, lock_fd: int) -> None:
        self._dir = directory
        self._engine = OwnedEngine(directory, lock_fd)
        self._watch = Watch(self._engine)
        self._work = WorkSlot(self._engine.changes.note, self._crash)
        self._exited = asyncio.Event()
        self._keep_files_at = 0.0
        self._was_terminated = False
        """By a signal: those who wait for the engine have another supervisor started."""

    # ---- life

    async def run(self) -> None:
        """Serve callers until the engine is shut down, or its standby is over."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, reap_children)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for stale in self._dir.path.glob("*.sock"):
            stale.unlink(missing_ok=True)
        server = await serve_callers(self._dir.control_socket, self._handle)
        self._engine.keeper.publish()
        watching = asyncio.create_task(self._watch_loaded())
        try:
            await self._until_over()
        finally:
            watching.cancel()
            server.close()
            await self._close()

    async def _until_over(self) -> None:
        """Return when there is nothing left to do."""
        engine = self._engine
        while True:
            seen, wait_s = engine.changes.count, KEEP_FILES_S
            self._keep_files()
            if not self._work.is_busy and engine.is_at_rest:
                if engine.is_shutting_down:
                    return
                wait_s = self._rest_ends_at() - time.monotonic()
                if wait_s <= 0 and not engine.callers.are_waiting:
                    return
                wait_s = max(wait_s, MIN_WAIT_S)
            await engine.changes.wait_after(seen, min(wait_s, KEEP_FILES_S))

    def _rest_ends_at(self) -> float:
        """When an engine at rest is given up: standby is over, or the caller that started this process has died."""
        engine = self._engine
        if not engine.callers.have_asked:
            return engine.keeper.entered_at + FIRST_CALLER_S
        ttl_s = engine.backoff.standby_ttl_s(engine.callers.policy.standby_ttl_s)
        return max(engine.keeper.entered_at + ttl_s, engine.backoff.retry_at)

    def _keep_files(self) -> None:
        """Keep them from whoever removes what is old in /tmp. Not at every change: vLLM's may be thousands."""
        self._engine.keeper.exit_if_not_owned()
        if time.monotonic() >= self._keep_files_at:
            self._dir.keep_young()
            self._keep_files_at = time.monotonic() + KEEP_FILES_S

    async def _close(self) -> None:
        engine = self._engine
        if engine.keeper.state is not EngineState.STOPPED:
            reason = "asked to" if engine.is_shutting_down else "standby is over"
            engine.keeper.enter(EngineState.STOPPED, reason)
        engine.is_shutting_down = True
        await engine.process.end_launcher()
        shutil.rmtree(self._dir.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._dir.control_socket.unlink()
        engine.log.note("exits")
        self._exited.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1.0)  # those who get their reply now

    def _terminate(self) -> None:
        """SIGTERM: the machine goes down, or the service that was the first to use the engine; nobody asked us to stop.

        Requests in flight do not hold it.
        """
        self._was_terminated = True
        self._shut_down()
        self._work.begin_instead(RecordDeath(self._engine, "its supervisor was sent SIGTERM", is_from_outside=True))

    def _shut_down(self) -> None:
        self._engine.is_shutting_down = True
        self._engine.changes.note()

    def _crash(self, error: BaseException) -> NoReturn:
        """A mistake in this program. The kernel ends all below this process; the next request starts another."""
        self._engine.log.note("".join(traceback.format_exception(error)), logging.CRITICAL)
        os._exit(70)

    # ---- callers

    async def _handle(self, request: Request, send: Send) -> Reply | None:
        """The reply; None where there is none to give, as this process exits."""
        self._engine.log.note(f"asked: {type(request).__name__}", logging.DEBUG)
        match request:
            case EnsureReady():
                return await self._ensure_ready(request, send)
            case WhatBecameOf():
                return await self._what_became_of(request.start_number)
            case Keep():
                return self._keep(request)
            case Evict():
                return await self._evict(EvictionReason.ASKED)
            case MakeRoom():
                if self._engine.callers.is_pinned:
                    return Refused(Refusal.PINNED)
                is_awaited = self._watch.grace_s() > 0
                return Refused(Refusal.BUSY) if is_awaited else await self._evict(EvictionReason.MAKE_ROOM)
            case Shutdown():
                return await self._shutdown(force=request.force)
            case _:
                return NotUnderstood()  # a reply

    async def _ensure_ready(self, request: EnsureReady, send: Send) -> Ready | StartFailed | None:
        engine, keeper = self._engine, self._engine.keeper
        engine.callers.adopt(request.policy, request.environment)
        self._publish_kept()
        if keeper.record.progress is not None:
            send(StartProgress(keeper.record.progress))
        with engine.callers.waiting(request.policy, send):
            return await self._started(request.policy, send)

    def _keep(self, request: Keep) -> Kept:
        callers = self._engine.callers
        callers.keep(idle_ttl_s=request.idle_ttl_s, pinned=request.pinned)
        if callers.have_asked:
            self._publish_kept()
        return Kept()

    def _publish_kept(self) -> None:
        keeper, kept = self._engine.keeper, self._engine.callers.kept
        if any(getattr(keeper.record, name) != value for name, value in kept.items()):
            keeper.publish(**kept)
        self._engine.changes.note()  # it may have to be kept for longer, or to leave

    async def _started(self, policy: KeepPolicy, send: Send) -> Ready | StartFailed | None:
        engine, timeout = self._engine, policy.start_timeout_s
        deadline = time.monotonic() + timeout
        while not engine.is_shutting_down:
            record, seen = engine.keeper.record, engine.changes.count
            if not self._work.is_busy:
                if record.state is EngineState.READY:
                    if not engine.keeper.is_written():
                        message = f"{self._dir.path} can't be written to: is the disk full?"
                        return StartFailed(Failure(FailureKind.START, message))
                    trouble = await open_port(engine, policy.serve_tcp)
                    if engine.keeper.state is not EngineState.READY or self._work.is_busy:
                        continue  # it has ended meanwhile
                    if trouble is not None:
                        return StartFailed(Failure(FailureKind.START, trouble))
                    return Ready(os.getpid(), record.start_number)
                wait_s = engine.backoff.remaining_s()
                if wait_s > 0:
                    if record.failure is not None and time.monotonic() + wait_s > deadline:
                        return StartFailed(record.failure, wait_s)
                    send(StartProgress(_backing_off(wait_s)))
                    await engine.changes.wait_after(seen, wait_s)
                    continue
                if time.monotonic() > deadline:
                    return StartFailed(engine.start_timeout_failure(timeout))
                self._work.begin(Wake(engine) if record.state is EngineState.ASLEEP else Start(engine))
            try:
                async with asyncio.timeout_at(deadline):
                    failure = await self._work.outcome()
            except TimeoutError:
                goes_on = engine.start_timeout_failure(timeout, goes_on=True)
                # A start that is giving up has a better answer, soon.
                failure = await self._work.outcome() if self._work.is_giving_up else goes_on
            if failure is not None and not failure.is_from_outside and not self._was_terminated:
                return StartFailed(failure)
        await self._exited.wait()  # then its caller may have another supervisor started, and not before
        return None

    async def _what_became_of(self, start_number: int) -> Outcome:
        """The server may die a moment after its connections: so wait a little for its end."""
        keeper = self._engine.keeper
        deadline = time.monotonic() + DEATH_NOTICE_S
        while True:
            self._engine.changes.note()  # whoever watches it looks now
            seen = self._engine.changes.count
            outcome = outcome_of(keeper.record, start_number, keeper.first_start, keeper.deaths)
            left_s = deadline - time.monotonic()
            if outcome.fate is not Fate.RUNNING or left_s <= 0:
                return outcome
            await self._engine.changes.wait_after(seen, min(left_s, DEATH_POLL_S))

    async def _evict(self, reason: EvictionReason) -> Gone | Refused:
        if not self._end_server(reason, force=False):
            return Refused(Refusal.BUSY)
        await self._work.outcome()
        return Gone()

    async def _shutdown(self, *, force: bool) -> Gone | Refused:
        engine = self._engine
        was_shutting_down, engine.is_shutting_down = engine.is_shutting_down, True  # then a stop leaves no standby
        is_wanted = engine.keeper.state is EngineState.STOPPING and engine.callers.are_waiting and not force
        if is_wanted or not self._end_server(EvictionReason.SHUTDOWN, force=force):
            engine.is_shutting_down = was_shutting_down
            return Refused(Refusal.BUSY)
        await self._work.outcome()
        self._shut_down()
        await self._exited.wait()
        return Gone()

    def _end_server(self, reason: EvictionReason, *, force: bool) -> bool:
        """Begin to end the server, if there is one; False while requests forbid it."""
        engine = self._engine
        if engine.keeper.state is EngineState.STOPPING or (not self._work.is_busy and engine.is_at_rest):
            return True
        if not force and (engine.callers.are_waiting or not engine.lease.try_take()):
            return False
        self._work.begin_instead(Stop(engine, reason, _WORDS[reason], 0.0 if force else TERM_GRACE_S))
        return True

    # ---- while it is loaded

    async def _watch_loaded(self) -> None:
        engine = self._engine
        while True:
            seen, wait_s = engine.changes.count, LONGEST_WAIT_S
            if not self._work.is_busy and engine.is_loaded:
                try:
                    wait_s = await self._look()
                except OSError as exc:  # what the machine refuses now, as without a file descriptor left
                    engine.log.note(f"can't look at the engine: {exc}", logging.WARNING)
                    wait_s = BUSY_POLL_S
                except Exception as exc:
                    self._crash(exc)
            await engine.changes.wait_after(seen, wait_s)

    async def _look(self) -> float:
        """Look, and begin what is to be done; return the seconds until the next look."""
        engine = self._engine
        sight = await self._watch.look()
        if sight.step is Step.WAIT or self._work.is_busy:  # work that began meanwhile decides
            return sight.wait_s
        work: Work
        if sight.step is Step.DEAD:
            work = RecordDeath(engine, sight.why, is_from_outside=sight.is_from_outside)
        elif sight.step is Step.SLEEP:
            work = Sleep(engine, self._watch)
        else:
            work = Stop(engine, EvictionReason.IDLE, sight.why)
        self._work.begin(work)
        return LONGEST_WAIT_S


def _backing_off(wait_s: float) -> Progress:
    detail = f"the last start failed; the next begins in {wait_s:.0f} s"
    return Progress(StartPhase.QUEUED, detail=detail, since=time.time())
