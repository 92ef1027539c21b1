"""DirectEngine: one vLLM under this process for one key; its state, who uses it, and when it leaves memory.

One for each key of this process, whatever number of objects, threads and event loops use it. One lock guards the state:
a request that begins and an eviction can't miss each other.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing.util
import os
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass

from shared_engine.direct import children, host
from shared_engine.direct.folder import DirectFolder
from shared_engine.direct.host import Host
from shared_engine.errors import EngineError, EngineStartError, EngineStoppedError
from shared_engine.launch.fit import misfit_of
from shared_engine.machine.gpu import gpu_memory_by_process
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.processes import tree_in_app
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.life_stats import EvictionReason, LifeStats
from shared_engine.runtime.messages import Fate, Outcome
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from shared_engine.runtime.spec import EngineSpec

EXIT_S = 15.0
LOOK_S = 3600.0


@dataclass(frozen=True)
class Held:
    """The right to make one request; to be given back.

    Attributes:
        start_number: counts the starts of this engine in this process.
    """

    host: Host
    start_number: int


class DirectEngine:
    """See the module's docstring. Constructing one starts nothing."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.start_number = 0
        self.state = EngineState.STOPPED
        self.state_since = 0.0
        self.start_s: float | None = None
        self.failure: Failure | None = None
        self.in_flight = 0
        self._last_use = 0.0
        self._policy: KeepPolicy | None = None
        self._host: Host | None = None
        self.folder: DirectFolder | None = None
        self.life = LifeStats()
        self._deaths: dict[int, Failure] = {}
        self._guard = threading.RLock()

    # ---- requests

    def take(self, policy: KeepPolicy) -> Held | Future[None] | None:
        """The right to make a request; or what to wait for, and then to ask again; or None: have it started."""
        with self._guard:
            self._policy = policy if self._policy is None else self._policy.merged_with(policy)
            current = self._host
            if current is None:
                return None
            if self.state is EngineState.STARTING:
                return current.ready
            if self.state is EngineState.READY and current.is_usable:
                self.in_flight += 1
                return Held(current, self.start_number)
            return current.ended

    def start(self) -> Future[None]:
        """Begin a start, unless somebody else has; return what to wait for. Asks the driver and the disk: for a thread.

        Raises:
            EngineStartError: vLLM can't run on this machine, or no thread can be started.
            SettingsError: the runtime directory can't be used.
        """
        misfit = misfit_of(self.spec, os.environ)
        if misfit is not None:
            raise EngineStartError(f"the engine was not started: {misfit}")
        with self._guard:
            current = self._host or self._begin_start()
            return current.ended if self.state is EngineState.STOPPING else current.ready

    def give_back(self) -> None:
        with self._guard:
            self.in_flight -= 1
            self._last_use = time.monotonic()

    def outcome(self, start_number: int) -> Outcome:
        """What became of one start; once its host has ended, where it has begun to."""
        with self._guard:
            if start_number in self._deaths:
                return Outcome(Fate.DIED, self._deaths[start_number])
            is_current = start_number == self.start_number and self.state is EngineState.READY
            return Outcome(Fate.RUNNING if is_current else Fate.STOPPED)

    def ending(self, start_number: int) -> Future[None] | None:
        """Resolved when that start is over; None where it runs on, or is over."""
        with self._guard:
            current = self._host
            if current is None or start_number != self.start_number or current.is_usable:
                return None
            current.notice_error()
            return current.ended

    # ---- life

    def begin_eviction(self, reason: EvictionReason = EvictionReason.ASKED) -> Future[None] | None:
        """Have the model leave memory if no request is in flight; what to wait for then.

        Returns:
            None: requests are in flight, or it starts.
        """
        with self._guard:
            current = self._host
            if current is None:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            if self.state is EngineState.STOPPING:
                return current.ended
            if self.state is EngineState.STARTING or self.in_flight:
                return None
            self._enter(EngineState.STOPPING)
            self.life = self.life.evicted(reason)
            current.stop()
            return current.ended

    def kill(self) -> Future[None] | None:
        """End it, whatever it does; requests in flight fail. What to wait for, None where nothing runs."""
        with self._guard:
            current = self._host
            if current is None:
                return None
            if self.state is EngineState.READY:
                self._enter(EngineState.STOPPING)
                self.life = self.life.evicted(EvictionReason.SHUTDOWN)
        current.stop(at_once=True)
        return current.ended

    @property
    def idle_for_s(self) -> float | None:
        """Seconds since the last request ended; None while requests run, and where nothing is loaded."""
        is_idle = self.state is EngineState.READY and not self.in_flight
        return time.monotonic() - self._last_use if is_idle else None

    def info(self, *, processes: bool) -> EngineInfo:
        """The engine as it is now."""
        current = self._host
        pids = [] if current is None else current.children.pids
        tree = tree_in_app(pids, gpu_memory_by_process()) if processes else None
        with self._guard:
            return EngineInfo(
                state=self.state,
                mode="direct",
                model=self.spec.model,
                key=self.spec.key,
                is_alive=self._host is not None,
                state_since=self.state_since or None,
                progress=None if current is None else current.progress,
                starts=self.start_number,
                start_s=self.start_s,
                max_model_len=None if current is None else current.max_model_len,
                idle_for_s=self.idle_for_s,
                lease_holders=(os.getpid(),) if self.in_flight else (),
                devices=self.spec.devices,
                last_error=None if self.failure is None else self.failure.message,
                log_file=None if self.folder is None else str(self.folder.log),
                vllm_version=self.spec.vllm_version,
                processes=tree,
                life=self.life,
            )

    @property
    def host(self) -> Host | None:
        """The start that there is."""
        return self._host

    def _begin_start(self) -> Host:
        assert self._policy is not None
        if self.folder is None:
            self.folder = DirectFolder()
        began = time.monotonic()
        new = Host(self.spec, self._policy, self.folder, self._s_until_next_look)
        new.begin()
        self._host = new
        self.start_number += 1
        self._enter(EngineState.STARTING)
        # Only now: a start that fails at once waits for this thread's guard.
        new.ready.add_done_callback(lambda ready: self._note_start(ready, began))
        new.ended.add_done_callback(lambda _: self._note_end(new))
        _close_at_exit_first()
        return new

    def _note_start(self, ready: Future[None], began: float) -> None:
        with self._guard:
            error = ready.exception()
            if isinstance(error, EngineError) and not isinstance(error, EngineStoppedError):
                self.failure = Failure(FailureKind.START, error.message, error.log_tail)
                self.life = self.life.failed(self.failure.counted_as)
            if error is not None:
                return
            self.failure = None
            self.life = self.life.started({}, is_return=False)
            self.start_s = round(time.monotonic() - began, 3)
            self._last_use = time.monotonic()
            self._enter(EngineState.READY)
            _close_at_exit_first()

    def _note_end(self, of: Host) -> None:
        with self._guard:
            if of.end is not None:
                self.failure = Failure(FailureKind.DIED, of.end.words, of.last_lines, of.end.is_from_outside)
                self._deaths[self.start_number] = self.failure
                self.life = self.life.failed(self.failure.counted_as)
            self._host = None
            has_failed = of.end is not None or (self.state is EngineState.STARTING and not of.is_stopped)
            self._enter(EngineState.FAILED if has_failed else EngineState.STOPPED)

    def _enter(self, state: EngineState) -> None:
        self.state, self.state_since = state, time.time()

    def _s_until_next_look(self) -> float | None:
        """Evict it if nobody has used it for ``idle_ttl_s``; called by its host, again after so many seconds."""
        with self._guard:
            policy, idle_s = self._policy, self.idle_for_s
            if policy is None or policy.idle_ttl_s == math.inf:
                return LOOK_S
            if idle_s is not None and idle_s >= policy.idle_ttl_s:
                self.begin_eviction(EvictionReason.IDLE)
                return None
            return min(policy.idle_ttl_s - (idle_s or 0.0), LOOK_S)

    def close(self) -> None:
        """At the end of the app: end vLLM, and remove what it has written."""
        ended = self.begin_eviction() or self.kill()
        if ended is not None:
            wait([ended], EXIT_S)
        if ended is not None and not ended.done() and self._host is not None:
            self._host.stop(at_once=True)
            wait([ended], EXIT_S)
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.remove()

    def forget_in_child(self) -> None:
        """After a fork, in the child."""
        if self._host is not None:
            self._host.children.forget_in_child()
        if self.folder is not None:
            self.folder.close_in_child()


# ---- all of this process

_engines: dict[str, DirectEngine] = {}
_engines_guard = threading.Lock()
_inherited: list[object] = []
_finalizer: multiprocessing.util.Finalize | None = None


def direct_engine(spec: EngineSpec) -> DirectEngine:
    """This process's one engine of ``spec``."""
    with _engines_guard:
        if spec.key not in _engines:
            _engines[spec.key] = DirectEngine(spec)
        return _engines[spec.key]


def _close_all() -> None:
    for engine in list(_engines.values()):
        engine.close()


def _close_at_exit_first() -> None:
    """Before what vLLM and multiprocessing have registered: they would end the processes in their way, or wait."""
    atexit.unregister(_close_all)
    with contextlib.suppress(RuntimeError):  # the interpreter ends already
        atexit.register(_close_all)
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        # A child of multiprocessing calls these only, before it waits for its children.
        _finalizer = multiprocessing.util.Finalize(None, _close_all, exitpriority=100)


def _forget_in_child() -> None:
    """A forked child has none of the parent's threads: it starts an engine of its own."""
    global _engines_guard, _finalizer
    _engines_guard, _finalizer = threading.Lock(), None
    host.forget_in_child()
    if _engines:
        for engine in _engines.values():
            engine.forget_in_child()
        children.disown_finalizers()
        _inherited.append(dict(_engines))  # collecting them would end the parent's processes
        _engines.clear()


os.register_at_fork(after_in_child=_forget_in_child)
