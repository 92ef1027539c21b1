"""The single owner of one engine: starts it, watches it, evicts it. A detached process; standard library only.

Owns: supervisor.lock, record.json, the control socket, the log, every timer. It knows nothing of settings, HTTP or
prompts: what to start stands in spec.json, when it was used stands in the lease file.

One thread, one loop: events in, state changes out. Clients ask over the control socket, one JSON object a line:

    {"op": "ensure_ready", "policy": {...}, "environment": {...}}
                                              answered when the engine is ready or its start has failed
    {"op": "evict"}                           answered when the server is gone, or {"busy": true}
    {"op": "shutdown", "force": false}        as evict, and launcher and supervisor leave as well

A caller that hangs up only stops waiting.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shared_engine.engine_log import EngineLog
from shared_engine.launcher_process import LauncherProcess
from shared_engine.lease import open_lease_file, read_last_use, try_lock
from shared_engine.process_group import adopt_orphans, group_exists, reap_children, signal_group
from shared_engine.record import EngineState, Failure, Record, boot_id, read_record, write_record
from shared_engine.runtime_dir import RuntimeDir
from shared_engine.start_failures import explain

READY_POLL_S = 0.02
END_POLL_S = 0.01
TERM_GRACE_S = 5.0
GIVE_UP_S = 30.0
BUSY_POLL_S = 1.0
LEASE_GRACE_S = 1.0
LOCK_PATIENCE_S = 0.5
MAX_BACKOFF_S = 30.0


@dataclass
class Policy:
    """How long to keep the engine. Callers that share one engine may differ: the longest wish holds."""

    idle_ttl_s: float = 1800.0
    standby_ttl_s: float = 0.0
    start_timeout_s: float = 900.0

    def widen(self, other: dict[str, float]) -> None:
        for name in asdict(self):
            setattr(self, name, max(getattr(self, name), float(other.get(name, 0.0))))


@dataclass
class Ending:
    """A server on its way out, and what the record will say when its process group is gone."""

    state: EngineState
    failure: Failure | None
    kill_at: float
    give_up_at: float


class Caller:
    """One connection to the control socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending = b""

    def reply(self, **answer: Any) -> None:
        with contextlib.suppress(OSError):  # it hung up: it only stopped waiting
            self.connection.sendall(json.dumps(answer).encode() + b"\n")


class Supervisor:
    """See the module's docstring. Construct with the lock already held."""

    def __init__(self, directory: RuntimeDir) -> None:
        self._dir = directory
        self._spec: dict[str, Any] = json.loads(directory.spec.read_text())
        self._log = EngineLog(directory.log)
        self._policy: Policy | None = None
        self._selector = selectors.DefaultSelector()
        self._lease_fd = open_lease_file(directory.lease)
        self._ready_waiters: list[Caller] = []
        self._evict_waiters: list[Caller] = []
        self._launcher: LauncherProcess | None = None
        self._wanted_environment: dict[str, str] = {}
        self._environment: dict[str, str] = {}
        self._ending: Ending | None = None
        self._start_began = 0.0
        self._last_busy = 0.0
        self._idle_check_at = 0.0
        self._rest_until = 0.0
        self._failed_starts = 0
        self._retry_at = 0.0
        self._leaving = False
        self._done = False
        self._record = Record(
            generation=(read_record(directory.record) or Record()).generation,
            model=self._spec["model"],
            vllm_version=self._spec["vllm_version"],
            supervisor_pid=os.getpid(),
            boot_id=boot_id(),
            since=time.time(),
        )

    # ---- the loop

    def run(self) -> None:
        self._install_signals()
        for stale in self._dir.path.glob("*.sock"):
            stale.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._dir.control_socket))
        listener.listen(256)
        self._watch(listener.fileno(), lambda: self._accept(listener))
        write_record(self._dir.record, self._record)
        self._rest_until = time.monotonic() + 60.0  # the caller that started us died: leave again
        try:
            while not self._done:
                for key, _ in self._selector.select(self._wait_s()):
                    # A callback before this one may have closed it, and its number may be another's by now.
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
                self._tick(time.monotonic())
        finally:
            listener.close()
            self._close()

    def _wait_s(self) -> float:
        now = time.monotonic()
        if self._ending is not None:
            return END_POLL_S
        if self._record.state is EngineState.STARTING:
            return READY_POLL_S if self._record.server_pid else 0.5
        if self._record.state is EngineState.READY:
            return max(0.0, self._idle_check_at - now)
        return 0.0 if self._leaving else max(0.0, self._rest_until - now)

    def _tick(self, now: float) -> None:
        if self._ending is not None:
            self._step_ending(self._ending, now)
        elif self._record.state is EngineState.STARTING:
            self._step_start(now)
        elif self._record.state is EngineState.READY:
            if now >= self._idle_check_at:
                self._check_idle(now)
        elif self._leaving or now >= self._rest_until:
            self._leave()

    def _enter(self, state: EngineState, reason: str, **changes: Any) -> None:
        self._log.note(f"{self._record.state.value} -> {state.value}, {reason}")
        self._record = self._record.entered(state, since=time.time(), **changes)
        write_record(self._dir.record, self._record)

    # ---- callers

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as exc:  # out of file descriptors, or the caller has gone: the others must still be served
            return self._log.note(f"a caller was not accepted: {exc}")
        caller = Caller(connection)
        self._watch(connection.fileno(), lambda: self._hear(caller))

    def _hear(self, caller: Caller) -> None:
        try:
            data = caller.connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            return self._drop(caller)
        *lines, caller.pending = (caller.pending + data).split(b"\n")
        for line in lines:
            self._obey(caller, json.loads(line))

    def _obey(self, caller: Caller, request: dict[str, Any]) -> None:
        if request["op"] == "ensure_ready":
            self._want_ready(caller, request["policy"], request["environment"])
        elif request["op"] == "evict":
            self._want_gone(caller, leave=False, force=False)
        elif request["op"] == "shutdown":
            self._want_gone(caller, leave=True, force=bool(request.get("force")))
        else:
            caller.reply(ok=False, error=f"unknown op {request['op']!r}")

    def _drop(self, caller: Caller) -> None:
        self._unwatch(caller.connection.fileno())
        caller.connection.close()
        for waiters in (self._ready_waiters, self._evict_waiters):
            if caller in waiters:
                waiters.remove(caller)

    def _want_ready(self, caller: Caller, policy: dict[str, float], environment: dict[str, str]) -> None:
        if self._policy is None:
            self._policy = Policy(**policy)
        else:
            self._policy.widen(policy)
        self._wanted_environment = environment
        if self._leaving:
            return  # it hears the end of this process, and starts another
        now = time.monotonic()
        if self._record.state is EngineState.READY and self._ending is None:
            self._idle_check_at = min(self._idle_check_at, now + self._policy.idle_ttl_s)
            caller.reply(ok=True, supervisor_pid=os.getpid())
        elif self._record.failure is not None and self._ending is None and now < self._retry_at:
            caller.reply(ok=False, failure=asdict(self._record.failure), retry_in_s=self._retry_at - now)
        else:
            self._ready_waiters.append(caller)
            if self._ending is None and self._record.state is not EngineState.STARTING:
                self._begin_start()

    def _want_gone(self, caller: Caller, *, leave: bool, force: bool) -> None:
        state = self._record.state
        if state in (EngineState.READY, EngineState.STARTING) and self._ending is None and not force:
            busy = bool(self._ready_waiters) or not try_lock(self._lease_fd, fcntl.LOCK_EX)
            if busy:
                return caller.reply(ok=False, busy=True)
        self._leaving = self._leaving or leave
        self._evict_waiters.append(caller)
        if self._ending is None and state in (EngineState.READY, EngineState.STARTING):
            self._begin_stop("asked to")
        elif self._ending is None and not self._leaving:
            self._answer_evictions()

    def _answer_evictions(self) -> None:
        for caller in self._evict_waiters:
            caller.reply(ok=True)
        self._evict_waiters.clear()

    def _answer_waiters(self, **answer: Any) -> None:
        for caller in self._ready_waiters:
            caller.reply(**answer)
        self._ready_waiters.clear()

    # ---- starting

    def _begin_start(self) -> None:
        self._start_began = time.monotonic()
        self._log.clear()
        has_failed = self._record.failure is not None and self._record.failure.kind != "died"
        if has_failed and self._wanted_environment != self._environment:
            self._end_launcher()  # the caller may have mended the cause there: a token, a proxy
        generation = self._record.generation + 1
        self._enter(
            EngineState.STARTING,
            "a request waits",
            generation=generation,
            socket=str(self._dir.server_socket(generation)),
            server_pid=0,
            failure=None,
        )
        if self._launcher is None:
            self._launch()
        elif self._launcher.is_preloaded:
            self._start_server(self._launcher)

    def _launch(self) -> None:
        self._environment = self._wanted_environment
        python = self._spec["python"]
        try:
            launcher = LauncherProcess(python, {**self._environment, **self._spec["environment"]}, self._dir.path)
        except OSError as exc:
            return self._fail_start(Failure("not_installed", f"{python} can't be run: {exc.strerror}"))
        self._launcher = launcher
        self._watch(launcher.events_fd, lambda: self._hear_launcher(launcher))
        assert launcher.log_fd is not None
        self._watch(launcher.log_fd, lambda: self._read_log(launcher))
        self._record = replace(self._record, launcher_pid=launcher.pid)
        write_record(self._dir.record, self._record)

    def _start_server(self, launcher: LauncherProcess) -> None:
        launcher.start_server([*self._spec["argv"], "--uds", self._record.socket], self._record.generation)

    def _step_start(self, now: float) -> None:
        assert self._policy is not None
        if self._record.server_pid and can_connect(self._record.socket):
            seconds = round(now - self._start_began, 3)
            self._failed_starts = 0
            self._last_busy = now
            # Those who waited must have time to take their lease, however short they want the engine kept.
            self._idle_check_at = now + max(self._policy.idle_ttl_s, LEASE_GRACE_S)
            self._enter(EngineState.READY, f"the server answers after {seconds} s", start_seconds=seconds)
            self._answer_waiters(ok=True, supervisor_pid=os.getpid())
        elif now - self._start_began > self._policy.start_timeout_s:
            message = f"the engine was not ready after start_timeout_s = {self._policy.start_timeout_s:g} s"
            self._fail_start(Failure("timeout", message, self._log.tail()))
            if not self._record.server_pid:
                self._end_launcher()  # it hangs in the import: the next start needs another

    def _fail_start(self, failure: Failure) -> None:
        """End what is left of the server, then tell all who wait."""
        if self._ending is None:
            self._ending = self._new_ending(EngineState.FAILED, failure, grace_s=0.0)

    # ---- what the launcher says

    def _hear_launcher(self, launcher: LauncherProcess) -> None:
        events = launcher.read_events()
        if events is None:
            return self._launcher_ended(launcher)
        for event in events:
            self._handle(launcher, event)

    def _handle(self, launcher: LauncherProcess, event: dict[str, Any]) -> None:
        kind = event["event"]
        is_starting = self._record.state is EngineState.STARTING and self._ending is None
        if kind == "preloaded":
            launcher.is_preloaded = True
            how = "forks its processes" if event["fork_refusal"] is None else f"plain start: {event['fork_refusal']}"
            self._log.note(f"vLLM {event['version']} imported in {event['seconds']} s; {how}")
            if is_starting:
                self._start_server(launcher)
        elif kind == "import_failed" and is_starting:
            self._drain_log(launcher)
            message = f"{self._spec['python']} can't import vLLM ({event['error']}): run `vllm-local install`"
            self._fail_start(Failure("not_installed", message, self._log.tail()))
            self._end_launcher()  # it is leaving: the next start must not wait for it
        elif kind == "started":
            if not is_starting or event["generation"] != self._record.generation:
                return signal_group(event["pid"], signal.SIGKILL)  # stopped while the launcher was forking it
            self._record = replace(self._record, server_pid=event["pid"])
            write_record(self._dir.record, self._record)
        elif kind == "exited" and event["pid"] == self._record.server_pid and self._ending is None:
            self._drain_log(launcher)
            self._server_ended(f"vLLM ended by itself with exit code {event['returncode']}")

    def _server_ended(self, how: str) -> None:
        if self._record.state is EngineState.STARTING:
            cause = explain(self._log.lines())
            message = f"the engine did not start: {cause}" if cause else f"the engine did not start: {how}"
            self._fail_start(Failure("start", message, self._log.tail()))
        elif self._record.state is EngineState.READY:
            # An engine that dies makes vLLM exit with 0 as well: every exit nobody asked for is a crash.
            self._ending = self._new_ending(EngineState.FAILED, Failure("died", how, self._log.tail()), grace_s=0.0)

    def _launcher_ended(self, launcher: LauncherProcess) -> None:
        self._drain_log(launcher)
        self._unwatch(launcher.events_fd)
        launcher.close()
        self._launcher = None
        if self._ending is None:
            self._server_ended("the process that started vLLM was killed")

    def _end_launcher(self) -> None:
        """See the launcher gone, so that the next start makes another. Its server, if any, goes with it."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            self._unwatch(launcher.events_fd)
            launcher.end(TERM_GRACE_S)
            self._drain_log(launcher)
            launcher.close()

    def _read_log(self, launcher: LauncherProcess) -> bool:
        """Take what is there; False when there is nothing (yet, or ever again)."""
        if launcher.log_fd is None:
            return False
        data = launcher.read_log(launcher.log_fd)
        if data is None:
            self._unwatch(launcher.log_fd)
            os.close(launcher.log_fd)
            launcher.log_fd = None
        elif data:
            self._log.feed(data)
        return bool(data)

    def _drain_log(self, launcher: LauncherProcess) -> None:
        """Read what the server wrote before it ended: the cause stands there."""
        while self._read_log(launcher):
            pass

    # ---- ending

    def _begin_stop(self, reason: str) -> None:
        self._enter(EngineState.STOPPING, reason)
        state = EngineState.STANDBY if self._keeps_standby() else EngineState.STOPPED
        self._ending = self._new_ending(state, None, grace_s=TERM_GRACE_S)
        signal_group(self._record.server_pid, signal.SIGTERM)

    def _new_ending(self, state: EngineState, failure: Failure | None, grace_s: float) -> Ending:
        kill_at = time.monotonic() + grace_s
        return Ending(state, failure, kill_at, give_up_at=kill_at + GIVE_UP_S)

    def _keeps_standby(self) -> bool:
        assert self._policy is not None
        return self._policy.standby_ttl_s > 0 and not self._leaving and self._launcher is not None

    def _step_ending(self, ending: Ending, now: float) -> None:
        pid = self._record.server_pid
        reap_children()
        if pid and group_exists(pid):
            if now >= ending.kill_at:
                signal_group(pid, signal.SIGKILL)
            if now < ending.give_up_at:
                return
            # Held by the kernel (a driver, a file system): those who wait must hear something all the same.
            self._log.note(f"process group {pid} survives SIGKILL for {GIVE_UP_S:g} s; going on without it")
        self._ending = None
        with contextlib.suppress(OSError):
            os.unlink(self._record.socket)
        fcntl.flock(self._lease_fd, fcntl.LOCK_UN)
        if ending.state is EngineState.FAILED:
            assert ending.failure is not None
            self._finish_failure(ending.failure, now)
        else:
            self._enter(ending.state, "the server is gone", server_pid=0)
            self._rest(now)
        if not self._leaving:
            self._answer_evictions()
        if self._ready_waiters and not self._leaving:
            self._begin_start()

    def _finish_failure(self, failure: Failure, now: float) -> None:
        self._enter(EngineState.FAILED, failure.message, failure=failure, server_pid=0)
        if failure.kind != "died":
            # The first new try is free: the user may have mended the cause. After that, wait longer each time.
            self._failed_starts += 1
            wait_s = 0.0 if self._failed_starts == 1 else min(2.0 ** (self._failed_starts - 2), MAX_BACKOFF_S)
            self._retry_at = now + wait_s
            self._answer_waiters(ok=False, failure=asdict(failure))
        self._rest(now)

    def _rest(self, now: float) -> None:
        """Set until when to stay without a server: standby, or the end of the back-off."""
        assert self._policy is not None
        self._rest_until = max(now + self._policy.standby_ttl_s, self._retry_at)

    def _check_idle(self, now: float) -> None:
        assert self._policy is not None
        if not try_lock(self._lease_fd, fcntl.LOCK_EX):
            self._last_busy = now
            self._idle_check_at = now + min(self._policy.idle_ttl_s, BUSY_POLL_S)
            return
        last_use = read_last_use(self._lease_fd)
        # A stamp of the future was written before this boot of the machine.
        idle_since = max(last_use if last_use <= now else 0.0, self._last_busy)
        if now - idle_since >= self._policy.idle_ttl_s:
            self._begin_stop(f"idle for {now - idle_since:.1f} s")  # keeps the lock: nobody can lease it meanwhile
        else:
            fcntl.flock(self._lease_fd, fcntl.LOCK_UN)
            self._idle_check_at = idle_since + self._policy.idle_ttl_s

    def _leave(self) -> None:
        """End the launcher and this process."""
        if self._record.state is not EngineState.STOPPED:
            self._enter(EngineState.STOPPED, "asked to" if self._leaving else "standby is over")
        self._done = True

    def _close(self) -> None:
        self._end_launcher()
        if self._record.server_pid:
            signal_group(self._record.server_pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._dir.control_socket.unlink()
        self._answer_evictions()
        self._answer_waiters(ok=False, failure=asdict(Failure("stopped", "the engine was stopped while it started")))
        self._log.note("left")

    # ---- plumbing

    def _watch(self, fd: int, callback: Callable[[], object]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def _install_signals(self) -> None:
        wakeup_r, wakeup_w = os.pipe()
        for fd in (wakeup_r, wakeup_w):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wakeup_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._terminate())
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup_r, 4096)
            reap_children()

        self._watch(wakeup_r, woken)

    def _terminate(self) -> None:
        """SIGTERM: the machine goes down, or the user wants it gone. Requests in flight do not hold it."""
        self._leaving = True
        if self._ending is None and self._record.state in (EngineState.READY, EngineState.STARTING):
            self._begin_stop("SIGTERM")
        self._rest_until = 0.0


def can_connect(path: str) -> bool:
    """True when a server listens: vLLM binds early, but refuses connections until it can answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def main(argv: list[str]) -> int:
    """``python -m shared_engine.supervisor <runtime directory>``: detach, take the lock, run.

    Its stdout and stderr are the engine's log: a traceback of this process must be found somewhere.

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
        if time.monotonic() > patience:
            return 0
        time.sleep(0.01)
    os.chdir(directory.path)
    adopt_orphans()
    Supervisor(directory).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
