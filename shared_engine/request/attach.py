"""EngineSpec -> a leased, ready engine: use the one there is, wait for one that starts, launch one, or raise.

Clients never decide from a state they read earlier: they ask the supervisor for the outcome. The record is read only
to skip the asking when the engine is ready, and only while holding the lease, which forbids eviction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineNotInstalledError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineStoppedError,
)
from shared_engine.launch.spec import EngineSpec, launch_environment
from shared_engine.request.progress_bar import StartReporter
from shared_engine.runtime.control import MAX_LINE_BYTES
from shared_engine.runtime.directory import RuntimeDir, runtime_dir
from shared_engine.runtime.engine_log import TAIL_LINES
from shared_engine.runtime.lease import Lease
from shared_engine.runtime.policy import Policy
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import Failure, Record, current_record, is_supervised, read_record

SUPERVISOR_START_S = 30.0
POLL_S = 0.02
DEATH_NOTICE_S = 2.0
MAX_LAUNCHES = 10
# The standard library first: what an app has installed may have modules of the same names.
_SUPERVISE = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from shared_engine.supervisor.supervisor import main; sys.exit(main(sys.argv[1:]))"
)
# No socket, no listener, or one whose queue is full at the moment.
_NOBODY_LISTENS = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTCONN, errno.EAGAIN)


class Attachment:
    """This process's hold on one engine; one per process and spec, whatever number of objects and loops use it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.directory: RuntimeDir = runtime_dir(spec.key)
        self._lease = Lease(self.directory.lease)
        self._known: tuple[tuple[int, int], Record] | None = None
        self._told: set[tuple[Policy, int, int]] = set()
        self._launching = threading.Lock()
        self._asking: dict[tuple[asyncio.AbstractEventLoop, Policy], asyncio.Task[None]] = {}

    async def acquire(self, policy: Policy, *, show_progress: bool) -> Record:
        """Return the record of a ready engine, with a lease on it: give it back with ``release``.

        Raises:
            EngineStartError: the engine did not come up (EngineStartTimeoutError, EngineNotInstalledError).
            SettingsError: the runtime directory can't be used.
        """
        deadline = time.monotonic() + policy.start_timeout_s + SUPERVISOR_START_S
        while True:
            record = self._try_acquire(policy)
            if record is not None:
                return record
            if time.monotonic() > deadline:
                raise EngineStartTimeoutError(
                    f"{self.spec.model} was ready but never to be had; see {self.directory.log}"
                )
            await self._ensure_ready_once(policy, deadline, show_progress)

    def release(self) -> None:
        self._lease.give_back()

    def _try_acquire(self, policy: Policy) -> Record | None:
        if not self._told or not self._lease.try_take():
            return None
        record = self._current_record()
        # Each start must hear this caller's wishes once, else the engine might be evicted too early.
        if record is not None and record.is_usable and (policy, record.supervisor_pid, record.generation) in self._told:
            return record
        self._lease.give_back()
        return None

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

    async def _ensure_ready_once(self, policy: Policy, deadline: float, show_progress: bool) -> None:
        """All requests of this loop that wait, wait for one asking. Cancelling one stops its waiting only."""
        loop = asyncio.get_running_loop()
        asking = self._asking.get((loop, policy))
        is_joining = asking is not None
        if asking is None:
            asking = loop.create_task(self._ensure_ready(policy, deadline, show_progress))
            self._asking[loop, policy] = asking
            asking.add_done_callback(lambda _: self._asking.pop((loop, policy), None))
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, if all have left
        try:
            await asyncio.shield(asking)
        except EngineStartTimeoutError:
            # Whoever began it has waited for long enough; one that came later has time left.
            if not is_joining or time.monotonic() > deadline - SUPERVISOR_START_S:
                raise

    async def _ensure_ready(self, policy: Policy, deadline: float, show_progress: bool) -> None:
        """Ask the supervisor, and start one if there is none."""
        self.directory.prepare()
        environment = launch_environment(os.environ)
        request = {"op": "ensure_ready", "policy": policy.to_json(), "environment": environment}
        reporter = StartReporter(self.spec.model, show_progress)
        error: BaseException | None = None
        try:
            answer = await self._answer(request, deadline, reporter.report)
            if not answer["ok"]:
                raise start_error(Failure.from_json(answer["failure"]), float(answer.get("retry_in_s", 0.0)))
            start = (answer["supervisor_pid"], answer["generation"])
            self._told = {told for told in self._told if told[1:] == start} | {(policy, *start)}
        except BaseException as exc:
            error = exc
            raise
        finally:
            reporter.close(error)

    async def _answer(
        self, request: dict[str, Any], deadline: float, report: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """The answer of the supervisor that there is, or of one that is started."""
        for _ in range(MAX_LAUNCHES):  # one may leave, told to by somebody else, just when it is asked
            answer = await self._ask(request, deadline, report)
            if answer is not None:
                return answer
            await self._launch_supervisor(deadline)
        raise EngineStartError(
            f"no supervisor of {self.spec.model} stayed, of {MAX_LAUNCHES}; see {self.directory.log}", self._log_tail()
        )

    def _log_tail(self) -> tuple[str, ...]:
        with contextlib.suppress(OSError):
            return tuple(self.directory.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return ()

    async def _ask(
        self, request: dict[str, Any], deadline: float, report: Callable[[Progress], None] = lambda _: None
    ) -> dict[str, Any] | None:
        """The supervisor's answer, or None if there is no supervisor (any more)."""
        try:
            reader, writer = await asyncio.open_unix_connection(
                str(self.directory.control_socket), limit=MAX_LINE_BYTES
            )
        except OSError as exc:
            if exc.errno in _NOBODY_LISTENS:
                return None
            raise
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            async with asyncio.timeout(deadline - time.monotonic()):
                while (line := await reader.readline()).startswith(b'{"progress": '):
                    report(Progress.from_json(json.loads(line)["progress"]))
        except ConnectionError:
            return None
        except TimeoutError:
            raise EngineStartTimeoutError(
                f"the supervisor of {self.spec.model} did not answer in time; see {self.directory.log}"
            ) from None
        finally:
            writer.close()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _launch_supervisor(self, deadline: float) -> None:
        """Start a supervisor and wait until one listens; any number of processes may do so at once, one wins."""
        if self._launching.acquire(blocking=False):
            try:
                await _in_a_thread(self._spawn_supervisor)
            finally:
                self._launching.release()
        limit = min(deadline, time.monotonic() + SUPERVISOR_START_S)
        while not await self._is_listening():
            if time.monotonic() > limit:
                raise EngineStartError(f"no supervisor came up in {SUPERVISOR_START_S:g} s; see {self.directory.log}")
            if not self._launching.locked() and not self.is_supervised():
                # It left between our asking and its lock: the next round starts another.
                return await asyncio.sleep(POLL_S)
            await asyncio.sleep(POLL_S)

    def _spawn_supervisor(self) -> None:
        root = Path(__file__).resolve().parent.parent.parent
        try:
            write_atomically(self.directory.spec, json.dumps(self.spec.to_json()))
            log = os.open(self.directory.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as exc:
            raise EngineStartError(f"{self.directory.path} can't be written to: {exc.strerror}") from exc
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _SUPERVISE, str(root), str(self.directory.path)],
                env=launch_environment(os.environ),
                cwd=self.directory.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
                timeout=SUPERVISOR_START_S,
            )
        except subprocess.TimeoutExpired as exc:
            raise EngineStartError(f"{sys.executable} did not come up as Python in {SUPERVISOR_START_S:g} s") from exc
        except OSError as exc:
            raise EngineStartError(f"{sys.executable} can't be run to supervise the engine: {exc.strerror}") from exc
        finally:
            os.close(log)
        if done.returncode != 0:
            raise EngineStartError(f"{sys.executable} failed to supervise the engine", self._log_tail())
        # The child that stays takes the lock right away; wait for it, or for another's.
        limit = time.monotonic() + SUPERVISOR_START_S
        while not self.is_supervised() and time.monotonic() < limit:
            time.sleep(POLL_S / 4)

    async def _is_listening(self) -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(str(self.directory.control_socket))
        except OSError as exc:
            if exc.errno in _NOBODY_LISTENS:
                return False
            raise
        writer.close()
        return True

    # ---- looking on, without starting anything or keeping it awake

    def is_supervised(self) -> bool:
        """True while a supervisor lives."""
        return is_supervised(self.directory)

    def record(self) -> Record:
        """The engine as it is now; STOPPED if nobody owns it, whatever an old record says."""
        record = current_record(self.directory)
        if record is not None:
            return record
        return Record(model=self.spec.model, vllm_version=self.spec.vllm_version, devices=self.spec.devices)

    # ---- ending

    async def evict(self, timeout: float, *, leave: bool = False, force: bool = False) -> None:
        """Return when the server's process group is gone; with ``leave`` its launcher and supervisor too.

        Raises:
            EngineBusyError: requests were in flight for all of ``timeout`` seconds.
        """
        if not self.directory.lock.exists():
            return  # it was never started here
        deadline = time.monotonic() + timeout
        request = {"op": "shutdown", "force": force} if leave else {"op": "evict"}
        while True:
            try:
                answer = await self._ask(request, deadline + SUPERVISOR_START_S)
            except EngineStartTimeoutError as exc:
                raise EngineError(exc.message) from exc
            # Until it is gone: one that was being launched meanwhile may have taken its place.
            if answer is None and not (leave and self.is_supervised()):
                return
            if answer is not None and answer["ok"] and not leave:
                return
            is_busy = answer is not None and not answer["ok"]
            if is_busy and time.monotonic() >= deadline:
                raise EngineBusyError(f"requests were in flight for {timeout:g} s: {self.spec.model} was not stopped")
            if time.monotonic() > deadline + SUPERVISOR_START_S:
                raise EngineError(f"the supervisor of {self.spec.model} did not leave; see {self.directory.log}")
            await asyncio.sleep(POLL_S)

    async def death_of(self, generation: int) -> EngineDiedError | EngineStoppedError | None:
        """After a request lost its connection: the engine's death, if the supervisor sees one soon; else None."""
        # The record may be one that a killed supervisor left behind: the next request asks before it believes it.
        self._told.clear()
        deadline = time.monotonic() + DEATH_NOTICE_S
        while time.monotonic() < deadline:
            record = read_record(self.directory.record)
            if record is None or record.generation != generation:
                return EngineDiedError("the engine died while the request was running, and was started anew")
            if not record.is_usable:
                return died_error(record.failure)
            if not self.is_supervised():
                return EngineDiedError("the engine died with its supervisor while the request was running")
            await asyncio.sleep(POLL_S)
        return None

    def forget_in_child(self) -> None:
        """After a fork, in the child: start with no lease."""
        self._lease.forget_in_child()
        self._launching = threading.Lock()
        self._asking.clear()


async def _in_a_thread(call: Callable[[], None]) -> None:
    """As asyncio.to_thread, which refuses while the interpreter shuts down, as in an app's atexit handler.

    Raises:
        EngineStartError: this Python starts no thread any more.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.cancelled():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(finish, error)

    try:
        threading.Thread(target=run, name="vllm-local-launch", daemon=True).start()
    except RuntimeError as exc:
        raise EngineStartError(f"the engine can't be started while the app ends: {exc}") from exc
    await done


_attachments: dict[str, Attachment] = {}
_attachments_guard = threading.Lock()


def attachment(spec: EngineSpec) -> Attachment:
    """This process's one attachment to the engine of ``spec``."""
    directory = str(runtime_dir(spec.key).path)
    with _attachments_guard:
        return _attachments.setdefault(directory, Attachment(spec))


def _forget_in_child() -> None:
    global _attachments_guard
    _attachments_guard = threading.Lock()
    for each in _attachments.values():
        each.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)


def start_error(failure: Failure, retry_in_s: float = 0.0) -> EngineError:
    if failure.kind == "stopped":
        return EngineStoppedError(failure.message)
    kinds = {"timeout": EngineStartTimeoutError, "not_installed": EngineNotInstalledError}
    message = failure.message
    if retry_in_s > 0:
        message += f" (this is the last start's error; the next start is allowed in {retry_in_s:.1f} s)"
    return kinds.get(failure.kind, EngineStartError)(message, failure.log_tail)


def died_error(failure: Failure | None) -> EngineDiedError | EngineStoppedError:
    if failure is None:
        return EngineStoppedError("the engine was stopped while the request was running")
    return EngineDiedError(f"the engine died while the request was running: {failure.message}", failure.log_tail)


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
