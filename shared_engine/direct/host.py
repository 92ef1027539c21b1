"""One start of vLLM under this process: a thread with an event loop that owns vLLM's application and its EngineCore.

The loop is that thread's alone: whoever has a request hands it over with ``call``, from any loop or thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any

from shared_engine.direct.admission import admitted
from shared_engine.direct.children import Birth, Children, EngineProcess
from shared_engine.direct.folder import DirectFolder
from shared_engine.direct.watch import StartWatch, StepWatch
from shared_engine.errors import EngineError, EngineStartError, EngineStartTimeoutError, EngineStoppedError
from shared_engine.launcher.about import max_num_seqs
from shared_engine.launcher.cores import BIND_VARIABLE
from shared_engine.machine.gpu import wait_released
from shared_engine.machine.priority import give_way
from shared_engine.machine.proc import group_members
from shared_engine.observe.log_lines import this_process
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.log_level import FORMAT_VARIABLE, LEVEL_VARIABLE
from shared_engine.runtime.progress import Progress, ProgressReader, StartPhase
from shared_engine.runtime.spec import EngineSpec
from shared_engine.settings import ENVIRONMENT
from shared_engine.supervisor.ends import End, Exit, end_of, first_exit
from shared_engine.supervisor.start_failures import explain

# While vLLM starts: it would set up the app's logging, and put the sockets of its processes into /tmp.
LOGGING_VARIABLE, SOCKETS_VARIABLE, KEY_VARIABLE = "VLLM_CONFIGURE_LOGGING", "VLLM_RPC_BASE_PATH", "VLLM_API_KEY"
# What vLLM sets for its processes, and would leave set for the app.
_SET_BY_VLLM = ("VLLM_", "TORCHINDUCTOR_", "NUMEXPR_", "LD_PRELOAD", "LOCAL_WORLD_SIZE", "OMP_", "CUDA_VISIBLE_DEVICES")
# How long requests have for what vLLM says of its death, and its processes for an end of their own.
LAST_WORDS_S = 2.0
GRACE_S = 3.0
MIN_PAUSE_S = 0.01
PROGRESS_S = 0.2
MEMORY_BACK_S = 10.0

# As vLLM's own.
_FORMAT = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"

_log = logging.getLogger("shared_engine")


class Host:
    """One start, from its beginning to its end.

    Attributes:
        ready: resolved when requests can be made; fails with an EngineError.
        ended: resolved when the thread has ended, and all processes with it.
        end: how a process of vLLM's ended that nobody here had asked to; None where none has.
        last_lines: of the log, from before that.
        headers: that vLLM wants of each request.
        queued_for: what a start waits for, in words; empty where it does not.
        progress: how far a start has come; None while none is under way.
        clients: of each event loop: see in_process_client. They are kept here, to go with it.

    Args:
        policy: of whoever has the engine started.
        look: called now and then; returns in how many seconds again, None for never.
    """

    def __init__(
        self, spec: EngineSpec, policy: KeepPolicy, folder: DirectFolder, look: Callable[[], float | None]
    ) -> None:
        self.spec = spec
        self.folder = folder
        self._policy = policy
        self._look = look
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        self.end: End | None = None
        self.headers: Mapping[str, str] = {}
        self.app: Any = None
        self.clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self.max_model_len: int | None = None
        self.max_num_seqs: int | None = None
        self.last_lines: tuple[str, ...] = ()
        self.children = Children(_birth(self.folder))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._is_stopped = False
        self._dead: EngineProcess | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._start = contextlib.ExitStack()
        self._admission = contextlib.AsyncExitStack()
        self.queued_for = ""
        self.progress: Progress | None = None
        self._stalled = ""

    def begin(self) -> None:
        """Start the thread.

        Raises:
            EngineStartError: Python starts none any more.
        """
        try:
            threading.Thread(target=self._run, name="vllm-local-direct", daemon=True).start()
        except RuntimeError as exc:
            raise EngineStartError(f"the engine can't be started: {exc}") from exc
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._watch_start, name="vllm-local-direct-start", daemon=True).start()

    # ---- for any thread

    def call(self, make: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run a coroutine on the loop; False where the host has ended."""
        return self.soon(lambda: self._begin_call(make()))

    def soon(self, callback: Callable[[], object]) -> bool:
        """As ``call_soon_threadsafe``; False where the host has ended."""
        try:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # it is closed
            return False
        return True

    def stop(self, *, at_once: bool = False) -> None:
        """Begin to end it; ``ended`` says when that is done.

        Args:
            at_once: also while it starts, by killing its processes.
        """
        self._is_stopped = True
        self.soon(self._stopping.set)
        if at_once:
            self.children.end(0)

    @property
    def is_stopped(self) -> bool:
        """Somebody here has asked for its end."""
        return self._is_stopped

    @property
    def is_usable(self) -> bool:
        app = self.app
        return app is not None and self._dead is None and not (self._is_stopped or app.state.engine_client.errored)

    def notice_error(self) -> None:
        """vLLM has said that its engine is dead: its process may take a while to end."""
        if not self._is_stopped and self._dead is None:
            self.soon(lambda: self._notice_end(self.children.processes[0]))

    def _watch_start(self) -> None:
        """In a thread of its own: the other one is vLLM's until the engine is ready."""
        watch = StartWatch(self.spec, self.children, self.folder.log, self._policy.stall_timeout_s)
        reader, position, look_at = ProgressReader(StartPhase.IMPORT), 0, 0.0
        while not wait([self.ready], min(watch.poll_s, PROGRESS_S)).done:
            position += self._follow_log(reader, position)
            if self.queued_for or time.monotonic() < look_at:
                continue
            look_at = time.monotonic() + watch.poll_s
            if watch.has_stalled():
                self._stalled = (
                    "the start hangs: no line in the log and no use of the processor for stall_timeout_s = "
                    f"{self._policy.stall_timeout_s:g} s, while it was {self.progress}"
                )
                self.children.end(0)
                break
        self.progress = None

    def _follow_log(self, reader: ProgressReader, position: int) -> int:
        """How many bytes have come since."""
        if self.queued_for and reader.progress.detail != self.queued_for:
            reader.enter(StartPhase.QUEUED, self.queued_for)
        data = self.folder.read(position)
        reader.feed(data.decode(errors="replace"))
        self.progress = reader.progress
        return len(data)

    # ---- its thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self.folder.begin_start()
            with _logged_to(self.folder), self._start:
                self._start.enter_context(_one_at_a_time)
                self._start.enter_context(_root_logger_kept())
                self._start.enter_context(_environment({**self.spec.environment, **self._variables()}))
                if self._is_stopped:
                    raise EngineStoppedError("the engine was stopped while it started")
                loop_factory, run_application = _vllm()
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    self._loop = runner.get_loop()
                    runner.run(self._main(run_application))
        except BaseException as exc:
            error = exc
        self._end_processes()
        if not self.ready.done():
            self.ready.set_exception(self._why_not_started(error))
        elif error is not None:
            _log.debug("the end of vLLM in this process", exc_info=error)
        self.app = None
        self.ended.set_result(None)

    def _end_processes(self) -> None:
        """See them gone, and their memory back."""
        members = [pid for leader in self.children.pids for pid in group_members(leader)]
        self.children.end(0)
        self.children.remove_shared_memory()
        if any(device.startswith("cuda") for device in self.spec.devices):
            asyncio.run(wait_released(self.spec.devices, members, MEMORY_BACK_S))

    def _variables(self) -> dict[str, str]:
        scratch = self.children.birth.environment.get("TMPDIR")
        return {LOGGING_VARIABLE: "0", **({} if scratch is None else {SOCKETS_VARIABLE: scratch})}

    async def _main(self, run_application: Any) -> None:
        self.children.enter()
        async with self._admission:
            await self._admission.enter_async_context(admitted(self.spec, self._policy, self._note_waiting))
            await run_application(self.spec.argv, self._serve)

    def _note_waiting(self, why: str) -> None:
        self.queued_for = why
        if self._is_stopped:
            raise EngineStoppedError("the engine was stopped while it waited to start")

    async def _serve(self, app: Any) -> None:
        key = os.environ.get(KEY_VARIABLE)  # the app's, for a remote server; vLLM wants it from its own callers
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        loop = asyncio.get_running_loop()
        for process in self.children.processes:
            loop.add_reader(process.sentinel, self._notice_end, process)
        self.children.note_shared_memory()
        if "cpu" in self.spec.devices:
            for leader in self.children.pids:
                give_way(leader)
        self._start.close()
        await self._admission.aclose()
        self.max_model_len = app.state.engine_client.model_config.max_model_len
        self.max_num_seqs = max_num_seqs(app)
        self.app = app
        if not self._is_stopped:
            self.ready.set_result(None)
            await self._until_stopped()
        for process in self.children.processes:
            loop.remove_reader(process.sentinel)
        if self.end is not None:
            self.children.end(0)
        elif self._dead is not None:
            if self._calls:
                await asyncio.wait(self._calls, timeout=LAST_WORDS_S)
            self.last_lines, self.end = self.folder.tail(), self._end_of(self._dead)
        for call in self._calls:
            call.cancel()
        app.state.engine_client.shutdown(timeout=GRACE_S)

    async def _until_stopped(self) -> None:
        from shared_engine.direct.application import metrics_text

        limit_s = self._policy.stall_timeout_s
        steps = StepWatch(metrics_text, limit_s)
        while not self._stopping.is_set():
            look_s = self._look()
            pause_s = min(steps.poll_s, math.inf if look_s is None else look_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause_s, MIN_PAUSE_S)):
                    await self._stopping.wait()
            if await steps.is_hung(self._answered, has_requests=bool(self._calls)):
                self.end = End(f"it hung: requests were running and nothing moved for stall_timeout_s = {limit_s:g} s")
                self.last_lines = self.folder.tail()
                self._notice_end(self.children.processes[0])

    async def _answered(self) -> None:
        """Return when EngineCore has answered, or has ended, or is to end."""
        asking = asyncio.ensure_future(self.app.state.engine_client.is_sleeping())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((asking, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())  # its error is the end's
            asking.cancel()
            stopping.cancel()

    def _notice_end(self, process: EngineProcess) -> None:
        self._dead = self._dead or process
        asyncio.get_running_loop().remove_reader(process.sentinel)
        self._stopping.set()

    def _end_of(self, process: EngineProcess) -> End:
        process.join(LAST_WORDS_S)
        lines = self.folder.lines()
        ended = first_exit(lines) or Exit(f"vLLM's {process.name}", process.exitcode)
        return end_of(ended, lines, memory_ran_out=False)

    def _begin_call(self, call: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _why_not_started(self, error: BaseException | None) -> EngineError:
        if self._stalled:
            return EngineStartTimeoutError(self._stalled, self.folder.tail())
        if self._is_stopped:
            return EngineStoppedError("the engine was stopped while it started")
        said = f"{type(error).__name__}: {error}"
        lines = self.folder.lines()
        cause = explain([*lines, *f"error: {error}".splitlines(), *said.splitlines()]) or said
        return EngineStartError(f"the engine did not start: {cause}", self.folder.tail())


def _birth(folder: DirectFolder) -> Birth:
    passed_on = ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", LOGGING_VARIABLE)
    environment = {name: os.environ[name] for name in passed_on if name in os.environ}
    ours = set(ENVIRONMENT.values()) - {BIND_VARIABLE}  # which vLLM reads itself, in the child
    unset = (*ours, ROOT_VARIABLE, LEVEL_VARIABLE, FORMAT_VARIABLE, LOGGING_VARIABLE)
    return Birth(os.getpid(), str(folder.log), unset, folder.directory.scratch_environment(environment))


def _vllm() -> tuple[Any, Any]:
    """Import vLLM: what makes an event loop as its server's, and what runs its application.

    Raises:
        EngineStartError: this process was forked while another thread imported it, so that it never can.
    """
    global _is_importing
    if _is_broken:
        raise EngineStartError(
            "vLLM can't be imported here: this process was forked while its parent imported it. Fork before the first "
            "request, or after it (or after warmup()), or use mode='local'"
        )
    _is_importing = True
    try:
        import uvloop

        from shared_engine.direct.application import import_server, run_application

        import_server()
    finally:
        _is_importing = False
    return uvloop.new_event_loop, run_application


def forget_in_child() -> None:
    """After a fork of the app, in the child."""
    global _one_at_a_time, _is_broken
    _one_at_a_time = threading.Lock()
    _is_broken = _is_broken or _is_importing


# ---- what a start changes in this process, for as long as it lasts

_one_at_a_time = threading.Lock()
_is_importing = False
_is_broken = False


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in {*before, *os.environ}:
            if name in variables or name.startswith(_SET_BY_VLLM):
                if name in before:
                    os.environ[name] = before[name]
                else:
                    os.environ.pop(name, None)


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """What vLLM imports sets its level."""
    root = logging.root
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)


@contextlib.contextmanager
def _logged_to(folder: DirectFolder) -> Iterator[None]:
    """vLLM's warnings of this process go to the engine's log, and to the app's own handlers, where it has any."""
    handler = logging.FileHandler(folder.log, delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(f"({this_process()}) {_FORMAT}", "%m-%d %H:%M:%S"))
    vllm = logging.getLogger("vllm")
    vllm.addHandler(handler)
    try:
        yield
    finally:
        vllm.removeHandler(handler)
        handler.close()
