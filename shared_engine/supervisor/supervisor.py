"""The single owner of one engine: starts it, watches it, puts it to sleep, evicts it. A detached process.

Owns: supervisor.lock, record.json, the control socket, the log, every timer. It knows nothing of settings or prompts:
what to start stands in spec.json, when it was used stands in the lease file. Standard library only.

One thread, one event loop, and at most one piece of *work* at a time: a start, a stop, falling asleep, waking up.
Nothing else changes the state; whoever wants it changed waits for the work under way, looks again, and begins another.

Clients ask over the control socket, one JSON object a line, one request a connection:

    {"op": "ensure_ready", "policy": {...}, "environment": {...}}
                                       {"progress": {...}} as it comes along, then the answer: the engine is ready,
                                       or {"ok": false, "failure": {...}}
    {"op": "evict"}                    answered when the server is gone; {"ok": false, "refusal": "busy"} if it is used
    {"op": "make_room"}                as evict, for another engine's sake; refusal "pinned" if this one must stay
    {"op": "shutdown", "force": false} as evict, and launcher and supervisor leave as well

A caller that hangs up only stops waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from shared_engine.machine.gpu import DeviceTurn, MemoryNeed
from shared_engine.machine.locks import try_lock
from shared_engine.machine.process_group import adopt_orphans, reap_children, remove_files, signal_group
from shared_engine.runtime.control import GONE, Answer, Tell, serve_callers
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.lease import open_lease_file, read_last_use
from shared_engine.runtime.policy import Policy, idle_step
from shared_engine.runtime.progress import ProgressReader, StartPhase
from shared_engine.runtime.record import EngineState, Failure, Record, boot_id, read_record, write_record
from shared_engine.supervisor.engine_process import TERM_GRACE_S, EngineProcess, StartFailedError, can_connect
from shared_engine.supervisor.eviction import ROOM_POLL_S, Room
from shared_engine.supervisor.hangs import HangDetector, hang_poll_s, http

PROGRESS_S = 0.1
BUSY_POLL_S = 1.0
MIN_POLL_S = 0.05
LEASE_GRACE_S = 1.0
LOCK_PATIENCE_S = 0.5
MAX_BACKOFF_S = 30.0
FIRST_CALLER_S = 20.0
CALLER_GRACE_S = 1.0  # the start's own limit comes first, where it is the caller's
SLEEP_TIMEOUT_S = 120.0
LONGEST_WAIT_S = 3600.0
KEEP_FILES_S = 10.0
AT_REST = (EngineState.STOPPED, EngineState.STANDBY, EngineState.FAILED)
LOADED = (EngineState.READY, EngineState.ASLEEP)

BUSY: Answer = {"ok": False, "refusal": "busy"}
PINNED: Answer = {"ok": False, "refusal": "pinned"}


class Supervisor:
    """See the module's docstring. Construct with the lock already held, on a running event loop."""

    def __init__(self, directory: RuntimeDir, lock_fd: int) -> None:
        self._dir = directory
        self._lock_fd = lock_fd
        self._spec: dict[str, Any] = json.loads(directory.spec.read_text())
        devices = self._spec["devices"]
        self._log = EngineLog(directory.log)
        self._progress = ProgressReader(StartPhase.IMPORT)
        self._process = EngineProcess(directory, self._spec, self._log, self._progress)
        need = MemoryNeed(self._spec["memory_share"], self._spec["memory_bytes"])
        self._room = Room(directory, devices, need, self._wait_for, self._log.note)
        self._policy: Policy | None = None
        self._lease_fd = open_lease_file(directory.lease)
        self._environment: dict[str, str] = {}
        self._work: asyncio.Task[Failure | None] | None = None
        self._can_be_called_off = False
        self._waiting: list[Policy] = []
        self._listeners: set[Tell] = set()
        self._start_limit: asyncio.Timeout | None = None
        self._start_began = 0.0
        self._is_giving_up = False
        self._can_sleep = False
        self._was_woken = False
        self._last_busy = 0.0
        self._ready_at = 0.0
        self._hang_detector = HangDetector()
        self._failed_starts = 0
        self._retry_at = 0.0
        self._rest_until = time.monotonic() + FIRST_CALLER_S  # if the caller that started us died: leave again
        self._leaving = False
        self._stirred = asyncio.Event()
        self._look_again = asyncio.Event()
        self._left = asyncio.Event()
        old = read_record(directory.record) or Record()
        remove_files(old.shared_files if old.boot_id == boot_id() else ())
        self._record = Record(
            generation=old.generation,
            model=self._spec["model"],
            vllm_version=self._spec["vllm_version"],
            devices=tuple(devices),
            supervisor_pid=os.getpid(),
            boot_id=boot_id(),
            since=time.time(),
        )

    # ---- life

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, reap_children)
        loop.add_signal_handler(signal.SIGTERM, self._terminate, "SIGTERM")
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for stale in self._dir.path.glob("*.sock"):
            stale.unlink(missing_ok=True)
        server = await serve_callers(self._dir.control_socket, self._obey)
        self._publish()
        house = asyncio.create_task(self._keep_house())
        try:
            await self._until_over()
        finally:
            house.cancel()
            server.close()
            await self._close()

    async def _until_over(self) -> None:
        """Return when there is nothing left to do: told to leave, or standby is over."""
        while True:
            self._stirred.clear()
            wait_s = KEEP_FILES_S
            self._keep_files()
            if self._work is None and self._record.state in AT_REST:
                wait_s = 0.0 if self._leaving else self._rest_until - time.monotonic()
                if wait_s <= 0:
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, KEEP_FILES_S)):
                    await self._stirred.wait()

    def _keep_files(self) -> None:
        """Keep them from whoever removes what is old in /tmp."""
        self._leave_if_disowned()
        for path in (self._dir.path, self._dir.lock, self._dir.lease, self._dir.record, self._dir.control_socket):
            with contextlib.suppress(OSError):
                os.utime(path)

    def _leave_if_disowned(self) -> None:
        """With the lock file gone nobody finds this engine any more, and its paths may be another's by now."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._lock_fd), os.stat(self._dir.lock)):
                return
        if self._process.server is not None:
            signal_group(self._process.server.pid, signal.SIGKILL)
        os._exit(0)  # the kernel ends all below this process

    async def _close(self) -> None:
        if self._record.state is not EngineState.STOPPED:
            self._enter(EngineState.STOPPED, "asked to" if self._leaving else "standby is over")
        self._leaving = True
        await self._process.end_launcher()
        shutil.rmtree(self._dir.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._dir.control_socket.unlink()
        self._log.note("left")
        self._left.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1.0)  # those who are told now

    def _stir(self) -> None:
        """Something has changed: those who wait for time to pass look again."""
        self._stirred.set()
        self._look_again.set()

    def _terminate(self, reason: str) -> None:
        """The machine goes down, or the user wants it gone. Requests in flight do not hold it."""
        self._leaving = True
        self._stop_now(reason)
        self._stir()

    def _enter(self, state: EngineState, reason: str, **changes: Any) -> None:
        self._log.note(f"{self._record.state.value} -> {state.value}, {reason}")
        self._record = self._record.entered(state, since=time.time(), **changes)
        self._publish()

    def _publish(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        self._leave_if_disowned()
        try:
            write_record(self._dir.record, self._record)
        except OSError as exc:
            # A stale record would be believed; with none, every caller asks here.
            self._dir.record.unlink(missing_ok=True)
            self._log.note(f"the record can't be written: {exc}")

    # ---- work: one at a time

    def _begin(self, work: Coroutine[Any, Any, Failure | None], *, can_be_called_off: bool = False) -> None:
        assert self._work is None
        self._can_be_called_off = can_be_called_off
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(self._work_done)

    def _work_done(self, work: asyncio.Task[Failure | None]) -> None:
        if self._work is work:
            self._work = None
            self._stir()
        if not work.cancelled() and (error := work.exception()) is not None:
            self._crash(error)

    def _stop_now(self, reason: str) -> None:
        """Begin to stop, in place of the work under way: a start is called off, what ends a server is let go on."""
        before, can_be_called_off = self._work, self._can_be_called_off

        async def stop() -> None:
            if before is not None:
                if can_be_called_off:
                    before.cancel()
                await asyncio.wait([before])
            if self._record.state not in AT_REST:
                await self._stop(reason)
            fcntl.flock(self._lease_fd, fcntl.LOCK_UN)

        self._work = None
        self._begin(stop())

    def _crash(self, error: BaseException) -> NoReturn:
        """A mistake in this program. The kernel ends all below this process; the next request starts anew."""
        self._log.note("".join(traceback.format_exception(error)))
        os._exit(70)

    async def _outcome(self) -> Failure | None:
        """Wait for the work under way; what it has to say to those who want the engine."""
        work = self._work
        if work is None:
            return None
        await asyncio.wait([work])
        if work.cancelled():
            return Failure("stopped", "the engine was stopped while it started")
        return work.result()

    # ---- callers

    async def _obey(self, request: Answer, tell: Tell) -> Answer | None:
        """The answer; None where there is none to give, as this process leaves."""
        op = request["op"]
        if op == "ensure_ready":
            policy = Policy(**request["policy"])
            self._hear_wishes(policy, request["environment"])
            if self._record.progress is not None:
                tell({"progress": self._record.progress.to_json()})
            self._listeners.add(tell)
            self._waiting.append(policy)
            try:
                return await self._ensure_ready(policy.start_timeout_s)
            finally:
                self._waiting.remove(policy)
                self._listeners.discard(tell)
        if op == "evict":
            return await self._evict(leave=False, force=False)
        if op == "make_room":
            if self._policy is not None and self._policy.pinned:
                return PINNED
            return BUSY if self._is_new() else await self._evict(leave=False, force=False)
        if op == "shutdown":
            return await self._evict(leave=True, force=bool(request.get("force")))
        return {"ok": False, "error": f"unknown op {op!r}"}

    def _hear_wishes(self, policy: Policy, environment: dict[str, str]) -> None:
        self._policy = policy if self._policy is None else self._policy.widened(policy)
        self._environment = environment
        if self._start_limit is not None and not self._start_limit.expired():
            self._start_limit.reschedule(self._start_began + self._policy.start_timeout_s)
        if self._record.pinned != self._policy.pinned:
            self._publish(pinned=self._policy.pinned)
        self._stir()

    async def _ensure_ready(self, start_timeout_s: float) -> Answer | None:
        deadline = time.monotonic() + start_timeout_s + CALLER_GRACE_S
        while not self._leaving:
            if self._work is None:
                if self._record.state is EngineState.READY:
                    if not self._dir.record.exists():
                        self._publish()
                    if not self._dir.record.exists():
                        full = Failure("start", f"{self._dir.path} can't be written to: is the disk full?")
                        return {"ok": False, "failure": asdict(full)}
                    return {"ok": True, "supervisor_pid": os.getpid(), "generation": self._record.generation}
                rest_s = self._retry_at - time.monotonic()
                if self._record.failure is not None and rest_s > 0:
                    return {"ok": False, "failure": asdict(self._record.failure), "retry_in_s": rest_s}
                work = self._wake() if self._record.state is EngineState.ASLEEP else self._start()
                self._begin(work, can_be_called_off=True)
            try:
                async with asyncio.timeout_at(deadline):
                    failure = await self._outcome()
            except TimeoutError:
                # A start that is being given up has a better answer, soon.
                goes_on = self._timeout_failure(start_timeout_s, "; the start goes on")
                failure = await self._outcome() if self._is_giving_up else goes_on
            if failure is not None:
                return {"ok": False, "failure": asdict(failure)}
        return None

    async def _evict(self, *, leave: bool, force: bool) -> Answer:
        if self._record.state is EngineState.STOPPING:
            if leave and self._waiting and not force:
                return BUSY
            self._leaving = self._leaving or leave
        elif self._work is not None or self._record.state not in AT_REST:
            if not force and (self._waiting or not try_lock(self._lease_fd, fcntl.LOCK_EX)):
                return BUSY
            self._leaving = self._leaving or leave
            self._stop_now("asked to")
        await self._outcome()
        if leave:
            self._leaving = True
            self._stir()
            await self._left.wait()
        return GONE

    # ---- starting

    async def _start(self) -> Failure | None:
        # Wishes of those who used it before the last start have passed; whoever still uses it says so again.
        if self._waiting:
            self._policy = functools.reduce(Policy.widened, self._waiting)
        assert self._policy is not None
        self._start_began = time.monotonic()
        self._log.clear()
        previous = self._record.failure
        if previous is not None and previous.kind != "died":
            # The caller may have mended the cause there: a token, a proxy.
            await self._process.end_launcher_of_another(self._environment)
        self._progress.enter(StartPhase.IMPORT)
        self._enter(EngineState.STARTING, "a request waits", failure=None, **self._next_generation())
        telling = asyncio.create_task(self._tell_progress())
        try:
            try:
                async with asyncio.timeout(self._policy.start_timeout_s) as self._start_limit:
                    await self._bring_up(self._policy)
            finally:
                self._start_limit = None  # a limit that is over can't be moved
        except TimeoutError:
            return await self._give_up(self._timeout_failure(self._policy.start_timeout_s))
        except StartFailedError as exc:
            return await self._give_up(exc.failure)
        finally:
            telling.cancel()
            self._is_giving_up = False
        return None

    async def _bring_up(self, policy: Policy) -> None:
        await self._process.preload(self._environment, policy.stall_timeout_s)
        # The turn is given back while there is no place: who must leave first may need it to wake, and be used.
        while True:
            async with self._turn():
                if await self._room.make_ahead(policy.max_loaded_engines):
                    try:
                        await self._serve_or_make_room(policy)
                    except BaseException:
                        self._is_giving_up = True
                        await self._process.end_server()  # before the next one's turn, who measures the memory
                        raise
                    return self._be_ready()
            await asyncio.sleep(ROOM_POLL_S)

    async def _serve_or_make_room(self, policy: Policy) -> None:
        """One more try, where memory was short and idle neighbours have left."""
        try:
            await self._serve(policy)
        except StartFailedError as exc:
            if exc.failure.kind != "memory" or not await self._room.make_all():
                raise StartFailedError(_with_neighbours(exc.failure, self._room.staying)) from exc
        else:
            return
        await self._process.end_server()
        self._publish(**self._next_generation())
        try:
            await self._serve(policy)
        except StartFailedError as exc:
            raise StartFailedError(_with_neighbours(exc.failure, self._room.staying)) from exc

    async def _serve(self, policy: Policy) -> None:
        def forked(pid: int) -> None:
            self._publish(server_pid=pid)

        # At once, unless the launcher has died since: with the server, when memory was short, or while this one waited.
        await self._process.preload(self._environment, policy.stall_timeout_s)
        generation, path = self._record.generation, self._record.socket
        await self._process.serve(generation, path, policy.stall_timeout_s, forked)

    def _be_ready(self) -> None:
        assert self._process.server is not None
        self._process.server.ended.add_done_callback(lambda _: self._stir())
        self._failed_starts = 0
        self._can_sleep = "--enable-sleep-mode" in self._spec["argv"]
        self._can_be_leased()
        seconds = round(time.monotonic() - self._start_began, 3)
        files = self._process.shared_files
        reason = f"the server answers after {seconds} s"
        self._enter(EngineState.READY, reason, start_seconds=seconds, progress=None, shared_files=files)

    def _can_be_leased(self) -> None:
        self._ready_at = self._last_busy = time.monotonic()
        self._hang_detector.forget()
        fcntl.flock(self._lease_fd, fcntl.LOCK_UN)

    async def _give_up(self, failure: Failure) -> Failure:
        """End what is left of a start that failed."""
        self._is_giving_up = True
        await self._process.end_server()
        # The first new try is free: the user may have mended the cause. After that, wait longer each time.
        self._failed_starts += 1
        wait_s = 0.0 if self._failed_starts == 1 else min(2.0 ** (self._failed_starts - 2), MAX_BACKOFF_S)
        self._retry_at = time.monotonic() + wait_s
        self._enter_rest(EngineState.FAILED, failure.message, failure=failure)
        return failure

    # ---- what a start waits for, and how far it is

    def _turn(self) -> DeviceTurn:
        root, devices, name = self._dir.path.parent, self._record.devices, Path(self._record.model).name
        return DeviceTurn(root, devices, name, lambda other: self._wait_for(f"{other or 'another engine'} starts"))

    def _wait_for(self, what: str) -> None:
        self._progress.enter(StartPhase.TURN, what)

    async def _tell_progress(self) -> None:
        """Tell those who wait, and all who look, as long as this task lives."""
        while True:
            if (
                self._progress.progress != self._record.progress
                or self._process.launcher_pid != self._record.launcher_pid
            ):
                self._publish(progress=self._progress.progress, launcher_pid=self._process.launcher_pid)
                for tell in self._listeners:
                    tell({"progress": self._progress.progress.to_json()})
            await asyncio.sleep(PROGRESS_S)

    def _next_generation(self) -> dict[str, Any]:
        generation = self._record.generation + 1
        return {"generation": generation, "socket": str(self._dir.server_socket(generation)), "server_pid": 0}

    def _timeout_failure(self, limit_s: float, what_now: str = "") -> Failure:
        progress = self._progress.progress
        message = (
            f"the engine was not ready after start_timeout_s = {limit_s:g} s: "
            f"it was {progress} for {time.time() - progress.since:.1f} s{what_now}"
        )
        return Failure("timeout", message, self._log.tail())

    # ---- ending

    async def _stop(self, reason: str) -> None:
        self._enter(EngineState.STOPPING, reason, progress=None)
        await self._process.end_server(TERM_GRACE_S)
        self._enter_rest(EngineState.STANDBY if self._keeps_standby() else EngineState.STOPPED, "the server is gone")

    def _keeps_standby(self) -> bool:
        assert self._policy is not None
        return self._policy.standby_ttl_s > 0 and not self._leaving and self._process.is_on_standby

    async def _bury(self, how: str) -> None:
        failure = Failure("died", how, self._log.tail())
        self._publish(failure=failure)  # those whose requests it ends ask why at once
        await self._process.end_server()
        self._enter_rest(EngineState.FAILED, how, failure=failure)

    def _enter_rest(self, state: EngineState, reason: str, failure: Failure | None = None) -> None:
        assert self._policy is not None
        fcntl.flock(self._lease_fd, fcntl.LOCK_UN)
        self._rest_until = max(time.monotonic() + self._policy.standby_ttl_s, self._retry_at)
        self._enter(state, reason, server_pid=0, shared_files=(), progress=None, failure=failure)

    # ---- sleep

    async def _sleep(self) -> None:
        """Weights to RAM. The lease is held exclusively, so nobody asks the engine anything meanwhile."""
        trouble = await self._ask_server("/sleep?level=1")
        if trouble is None:
            self._enter(EngineState.ASLEEP, "idle")
        elif trouble.startswith("HTTP"):
            self._can_sleep = False
            self._log.note(f"vLLM refuses to sleep, and stays awake: {trouble}")
        else:
            return await self._bury(f"it did not fall asleep: {trouble}")
        fcntl.flock(self._lease_fd, fcntl.LOCK_UN)

    async def _wake(self) -> Failure | None:
        """Weights back to the GPU, for those who wait. One that does not wake is ended, and started anew."""
        assert self._policy is not None
        self._start_began = time.monotonic()
        self._was_woken = False
        self._progress.enter(StartPhase.WAKE)
        telling = asyncio.create_task(self._tell_progress())
        try:
            async with asyncio.timeout(self._policy.start_timeout_s) as self._start_limit:
                trouble = await self._ask_to_wake(self._policy)
        except TimeoutError:
            failure = self._timeout_failure(self._policy.start_timeout_s)
            if self._was_woken:
                await self._bury("it did not wake up in time")
            return failure
        finally:
            telling.cancel()
            self._start_limit = None
            self._publish(progress=None)
        if trouble is not None:
            await self._bury(f"it did not wake up: {trouble}")
            return None
        self._can_be_leased()
        self._enter(EngineState.READY, f"awake after {time.monotonic() - self._start_began:.3f} s", progress=None)
        return None

    async def _ask_to_wake(self, policy: Policy) -> str | None:
        while True:
            async with self._turn():
                if await self._room.make_ahead(policy.max_loaded_engines):
                    self._progress.enter(StartPhase.WAKE)
                    self._was_woken = True
                    return await self._ask_server("/wake_up")
            await asyncio.sleep(ROOM_POLL_S)

    async def _ask_server(self, path: str) -> str | None:
        """What went wrong; None when the server has done it."""
        try:
            status, body = await http(self._record.socket, "POST", path, SLEEP_TIMEOUT_S)
        except TimeoutError:
            return f"no answer in {SLEEP_TIMEOUT_S:g} s"
        except OSError as exc:
            return str(exc)
        return None if status == 200 else f"HTTP {status}: {body[:200].decode(errors='replace')}"

    # ---- while it is loaded

    async def _keep_house(self) -> None:
        """Look after an engine that is loaded: has it died, is it idle, does it hang."""
        while True:
            self._look_again.clear()
            wait_s = LONGEST_WAIT_S
            if self._work is None and self._record.state in LOADED:
                try:
                    wait_s = min(await self._look(), LONGEST_WAIT_S)
                except Exception as exc:
                    self._crash(exc)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._look_again.wait()

    async def _look(self) -> float:
        """One look; returns the seconds until the next."""
        assert self._policy is not None and self._process.server is not None
        if self._process.server.ended.done():
            # An engine that dies makes vLLM exit with 0 as well: every end nobody asked for is a crash.
            self._begin(self._bury(self._process.server.ended.result()))
            return LONGEST_WAIT_S
        now = time.monotonic()
        if not try_lock(self._lease_fd, fcntl.LOCK_EX):
            self._last_busy = now
            if self._record.state is EngineState.READY:
                await self._look_for_a_hang()
            policy = self._policy
            return max(MIN_POLL_S, min(policy.idle_ttl_s, policy.sleep_after_s, policy.stall_timeout_s, BUSY_POLL_S))
        self._hang_detector.forget()
        last_use = read_last_use(self._lease_fd)
        # A stamp of the future was written before this boot of the machine.
        idle_since = max(last_use if last_use <= now else 0.0, self._last_busy)
        is_asleep = self._record.state is EngineState.ASLEEP
        step, wait_s = idle_step(self._policy, now - idle_since, is_asleep=is_asleep, can_sleep=self._can_sleep)
        if step is not None and self._is_new():
            step, wait_s = None, self._ready_at + LEASE_GRACE_S - now
        if step == "evict":
            self._begin(self._stop(f"idle for {now - idle_since:.1f} s"))  # keeps the lock: nobody can lease it
        elif step == "sleep":
            self._begin(self._sleep(), can_be_called_off=True)
        else:
            fcntl.flock(self._lease_fd, fcntl.LOCK_UN)
        return min(wait_s, hang_poll_s(self._policy.stall_timeout_s))  # nobody says when requests begin

    def _is_new(self) -> bool:
        """Those who waited for it must have time to take their lease, however short they want it kept."""
        is_unused = read_last_use(self._lease_fd) < self._ready_at
        is_ready = self._record.state is EngineState.READY
        return is_ready and is_unused and time.monotonic() < self._ready_at + LEASE_GRACE_S

    async def _look_for_a_hang(self) -> None:
        assert self._policy is not None
        server, limit_s = self._process.server, self._policy.stall_timeout_s
        is_hung = await self._hang_detector.is_hung(self._record.socket, self._record.model, limit_s)
        is_there = self._process.server is server and server is not None and not server.ended.done()
        if is_hung and is_there and self._work is None:
            how = f"it hung: requests were running and nothing moved for stall_timeout_s = {limit_s:g} s"
            self._begin(self._bury(how))


def _with_neighbours(failure: Failure, staying: dict[str, str]) -> Failure:
    """A failure for lack of memory, with who else holds some; others as they are."""
    if failure.kind != "memory" or not staying:
        return failure
    names = ", ".join(f"{name} ({why})" for name, why in staying.items())
    return replace(failure, message=f"{failure.message}; also loaded on the device: {names}")


def main(argv: list[str]) -> int:
    """Run by attach.py with the runtime directory: detach, take the lock, run.

    Exits at once, with 0, when another supervisor owns the engine: whoever started this one talks to that one.
    """
    directory = RuntimeDir(Path(argv[0]))
    # Twice removed, so that no tool that kills an app's process tree takes an engine others share.
    if os.fork():
        os._exit(0)
    os.setsid()
    lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Not at the first refusal: a client that looks whether an engine is supervised holds the lock for an instant.
    patience = time.monotonic() + LOCK_PATIENCE_S
    while not try_lock(lock, fcntl.LOCK_EX):
        # Not one that waits for its turn either: the owner may leave soon, and nobody would want this one then.
        if time.monotonic() > patience or can_connect(str(directory.control_socket)):
            return 0
        time.sleep(0.01)
    os.chdir(directory.path)
    adopt_orphans()
    asyncio.run(_supervise(directory, lock))
    return 0


async def _supervise(directory: RuntimeDir, lock_fd: int) -> None:
    await Supervisor(directory, lock_fd).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
