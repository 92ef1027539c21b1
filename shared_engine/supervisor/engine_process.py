"""The processes of one engine: the launcher, kept on standby, and the server it forks.

Starts them, explains why a start failed or hangs, and ends them with all they leave behind: processes, memory, shared
memory files, temporary files, sockets. Knows no states, leases or callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from shared_engine.machine.gpu import wait_released
from shared_engine.machine.hub_cache import bytes_of_download, bytes_on_disk, cached_model
from shared_engine.machine.priority import give_way
from shared_engine.machine.proc import (
    catches_signal,
    cpu_seconds,
    group_members,
    is_any_stopped,
    is_resource_tracker,
    is_runnable,
    out_of_memory_kills,
    shared_files,
    waited_seconds,
)
from shared_engine.machine.process_group import GIVE_UP_S, end_group
from shared_engine.machine.sockets import can_connect
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.files import remove_files
from shared_engine.runtime.launcher_messages import ImportFailed
from shared_engine.runtime.log_level import level_variable
from shared_engine.runtime.progress import ProgressReader, StartPhase
from shared_engine.runtime.record import Failure, FailureKind
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.ends import End, Exit, end_of, first_exit
from shared_engine.supervisor.hangs import MAX_GAP_FACTOR, StallWatch, WatchedClock
from shared_engine.supervisor.launcher_process import LauncherProcess, ServerProcess
from shared_engine.supervisor.server_tree import ServerTree
from shared_engine.supervisor.start_failures import NO_GPU, explain, lacks_memory
from shared_engine.vllm_versions import INSTALLED, matter_of_version

POLL_S = 0.02
FILES_POLL_S = 0.3
STALL_POLL_S = 5.0
FORK_STALL_S = 20.0
"""A launcher that has imported vLLM forks within milliseconds, and reads no file for it: one that does nothing for so
long hangs, however patient the callers are with a start."""
DUMP_SIGNAL = signal.SIGUSR2  # launcher.py has the processes print their Python stacks at it
DUMP_S, DUMP_LIMIT_S = 0.1, 2.0
DUMP_LINES = 12
TERM_GRACE_S = 5.0
MEMORY_BACK_S = 5.0


class StartFailedError(Exception):
    """Ends a start; all who wait for it get the failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class EngineProcess:
    """See the module's docstring.

    Args:
        log: gets all that launcher and server write.
        progress: follows the log while a start is under way.
    """

    def __init__(self, directory: RuntimeDir, spec: EngineSpec, log: EngineLog, progress: ProgressReader) -> None:
        self._dir = directory
        self._spec = spec
        self._log = log
        self._progress = progress
        self._launcher: LauncherProcess | None = None
        self._environment: Mapping[str, str] = {}
        self._socket = ""
        self.server: ServerProcess | None = None
        """The server, from the moment it is forked until it is gone with all it had."""
        self.shared_files: tuple[str, ...] = ()
        """Its shared memory, which a killed process leaves behind."""
        self._tree: ServerTree | None = None
        self._cached_model: Path | None = None
        """Where the hub's files of the model are stored, if it is one of the hub."""
        self._memory_kills = 0
        """The kernel's, before the start: one more, and a SIGKILL may be the kernel's."""

    @property
    def is_on_standby(self) -> bool:
        """True when a server can be forked at once."""
        return self._launcher is not None and self._launcher.is_ready

    @property
    def launcher_pid(self) -> int:
        return self._launcher.pid if self._launcher is not None else 0

    async def preload(self, environment: Mapping[str, str], stall_timeout_s: float) -> None:
        """Return when a launcher has imported vLLM; at once if one is on standby.

        Raises:
            StartFailedError: it can't, or hangs.
        """
        if self.is_on_standby:
            return
        await self.end_launcher()
        self._memory_kills = out_of_memory_kills()
        self._launcher = self._launch(environment)
        launcher = self._launcher
        stall = self._stall_check(lambda: [launcher.pid], stall_timeout_s)
        while not launcher.preloaded.done():
            await stall()
            await asyncio.wait([launcher.preloaded], timeout=POLL_S)
        event = launcher.preloaded.result()
        if event is None:
            raise self._explained(launcher.exit("the process that imports vLLM"))
        if isinstance(event, ImportFailed):
            remedy = "run `vllm-local install`"
            if (matter := matter_of_version(self._spec.vllm_version)) is not None:
                remedy = f"{matter}; `vllm-local install` makes an environment with {INSTALLED}"
            message = f"{self._spec.python} can't import vLLM ({event.error}): {remedy}"
            raise self._failed(FailureKind.NOT_INSTALLED, message)
        how = "forks its processes" if event.fork_refusal is None else f"plain start: {event.fork_refusal}"
        self._log.note(f"vLLM {event.version} imported in {event.seconds} s; {how}")

    def _launch(self, environment: Mapping[str, str]) -> LauncherProcess:
        self._environment = environment
        python = self._spec.python
        level = level_variable(os.environ)
        variables = {**self._dir.scratch_environment(environment), **self._spec.environment, **level}
        self._log.environment = variables
        if not os.path.isabs(self._spec.model):
            argv = self._spec.argv
            self._cached_model = cached_model(self._spec.model, variables, _value_of("--download-dir", argv))
        self._dir.clear_scratch()
        try:
            return LauncherProcess(python, variables, self._dir.path, self._read_output)
        except OSError as exc:
            raise self._failed(FailureKind.NOT_INSTALLED, f"{python} can't be run: {exc.strerror}") from exc

    async def serve(self, path: str, stall_timeout_s: float, publish: Callable[..., None]) -> None:
        """Have the launcher fork a server on the socket ``path``; return when it answers.

        Args:
            publish: takes fields of the record as soon as they are known: who comes after a supervisor that is
                killed meanwhile cleans up by them.

        Raises:
            StartFailedError: it ended instead, or hangs. ``end_server`` ends what is left.
        """
        assert self._launcher is not None
        launcher = self._launcher
        self._log.clear()
        self._dir.clear_scratch()
        self._socket = path
        self._memory_kills = out_of_memory_kills()
        self._progress.enter(StartPhase.CONFIG)
        starting = asyncio.ensure_future(launcher.start_server([*self._spec.argv, "--uds", path]))
        words = "the process that starts vLLM does not answer"
        stall = self._stall_check(lambda: [launcher.pid], min(stall_timeout_s, FORK_STALL_S), words)
        try:
            while not starting.done():
                await stall()
                await asyncio.wait([starting], timeout=POLL_S)
        finally:
            starting.cancel()
        server = starting.result()
        if server is None:
            raise self._explained(launcher.exit("the process that starts vLLM"))
        self.server = server
        publish(server_pid=server.pid)
        stall = self._stall_check(lambda: [launcher.pid, *group_members(server.pid)], stall_timeout_s)
        look_at, had_bytes = 0.0, self._bytes_on_disk()
        while not can_connect(path):
            if server.ended.done():
                raise self._explained(server.ended.result())
            await stall()
            if time.monotonic() >= look_at:
                if self._note_shared_files(server):  # it may die before it is ready
                    publish(shared_files=self.shared_files)
                self._note_fetched(self._bytes_on_disk() - had_bytes)
                look_at = time.monotonic() + FILES_POLL_S
            await asyncio.sleep(POLL_S)
        self._note_shared_files(server)
        self._tree = ServerTree(server.pid, server.has_ended, self._lines)

    def _note_fetched(self, fetched_bytes: int) -> None:
        if self._cached_model is not None and fetched_bytes > 0:
            whole = bytes_of_download(self._cached_model, _value_of("--revision", self._spec.argv))
            self._progress.note_fetched(fetched_bytes, whole)

    def _bytes_on_disk(self) -> int:
        return 0 if self._cached_model is None else bytes_on_disk(self._cached_model)

    async def end_within(self, timeout: float) -> End | None:
        """How the server has ended; None where it has not in ``timeout`` seconds."""
        server = self.server
        if server is None:
            return None
        if timeout > 0:
            await asyncio.wait([server.ended], timeout=timeout)
        return self._end_of(server.ended.result(), self._lines()) if server.ended.done() else None

    @property
    def server_pids(self) -> list[int]:
        """Of all its processes."""
        return [] if self.server is None else group_members(self.server.pid)

    def was_stopped(self) -> bool:
        """Whether somebody has stopped a process of the server that answers need, as with SIGSTOP."""
        return any(is_any_stopped([pid]) and not is_resource_tracker(pid) for pid in self.server_pids)

    def are_still(self, watch: StallWatch, now: float, limit_s: float) -> bool:
        """Whether the server's processes have done nothing for ``limit_s`` seconds."""
        return self._are_stalled(self.server_pids, watch, now, limit_s)

    def _are_stalled(self, pids: list[int], watch: StallWatch, now: float, limit_s: float) -> bool:
        written = self._log.bytes_fed + self._bytes_on_disk()
        is_able = partial(is_runnable, pids)
        return watch.is_stalled(now, written, cpu_seconds(pids), waited_seconds(pids), limit_s, is_able)

    def _end_of(self, exit: Exit, lines: list[str]) -> End:
        return end_of(exit, lines, memory_ran_out=out_of_memory_kills() > self._memory_kills)

    def _lines(self) -> list[str]:
        """All that was written until now."""
        if self._launcher is not None:
            self._launcher.drain_log()
        return self._log.lines()

    def _note_shared_files(self, server: ServerProcess) -> bool:
        """True if there are more than before."""
        before = len(self.shared_files)
        self.shared_files = tuple({*self.shared_files, *shared_files(group_members(server.pid))})
        return len(self.shared_files) > before

    def give_way(self) -> None:
        """Let the apps that wait for a server on the CPU have the processor first, now that it has started."""
        if self.server is not None and "cpu" in self._spec.devices:
            give_way(self.server.pid)

    async def end_server(self, grace_s: float = 0.0) -> None:
        """Return when the server's processes are gone, and their memory and files with them."""
        if self._launcher is not None and self._launcher.is_stopped:
            await self.end_launcher()
        if self.server is None and self._launcher is not None:
            self.server = await self._launcher.forked_server()  # one that was just being forked
        if self._tree is not None:
            self._tree.close()
        if self.server is not None:
            await self._end_group(self.server.pid, grace_s)
        self.server, self.shared_files, self._tree = None, (), None
        if self._launcher is not None:
            self._launcher.forget_server()
            if not self._launcher.is_ready:
                await self.end_launcher(grace_s=0.0)  # it failed, or hangs: the next start needs another
        self._dir.clear_scratch()
        with contextlib.suppress(OSError):
            os.unlink(self._socket)

    async def _end_group(self, pid: int, grace_s: float) -> None:
        members = group_members(pid)
        files = {*self.shared_files, *shared_files(members)}
        if not await end_group(pid, grace_s):
            # Held by the kernel (a driver, a file system): those who wait must get an answer all the same.
            self._log.note(
                f"process group {pid} survives SIGKILL for {GIVE_UP_S:g} s; going on without it", logging.WARNING
            )
        remove_files(files)
        if not await wait_released(self._spec.devices, members, MEMORY_BACK_S):
            self._log.note("the memory of the server that ended is not back yet", logging.WARNING)

    async def end_launcher(self, grace_s: float = TERM_GRACE_S) -> None:
        """See the launcher gone, so that the next start makes another. Its server, if any, goes with it."""
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            await launcher.end(grace_s)

    async def end_launcher_of_another(self, environment: Mapping[str, str]) -> None:
        """See the launcher gone if its environment is not this one."""
        if environment != self._environment:
            await self.end_launcher()

    def _read_output(self, data: bytes) -> None:
        self._log.feed(data)
        self._progress.feed(data.decode(errors="replace"))

    def _stall_check(
        self, pids: Callable[[], list[int]], limit_s: float, words: str = "the start hangs"
    ) -> Callable[[], Awaitable[None]]:
        """A function to call again and again, which raises StartFailedError when nothing has moved for ``limit_s``.

        Signs of life are what a process writes, and its use of the processor. There is no other while the launcher
        imports vLLM: nothing of ours runs then, and a process that reads from a slow disk looks like one that hangs. So
        an import, like all of a start, has ``stall_timeout_s``, which is long. A fork has FORK_STALL_S.
        """
        poll_s = min(limit_s / 10, STALL_POLL_S)
        clock = WatchedClock(MAX_GAP_FACTOR * poll_s)
        watch = StallWatch(clock.now())
        look_at = 0.0

        async def check() -> None:
            nonlocal look_at
            if time.monotonic() < look_at:
                return
            look_at = time.monotonic() + poll_s
            now_there = pids()
            if self._are_stalled(now_there, watch, clock.now(), limit_s):
                setting = "" if limit_s == FORK_STALL_S else "stall_timeout_s = "
                message = (
                    f"{words}: no line in the log and no use of the processor for {setting}{limit_s:g} s, "
                    f"while it was {self._progress.progress}"
                )
                stopped = is_any_stopped(now_there)
                lines = await self._lines_and_stacks(now_there)
                raise StartFailedError(Failure(FailureKind.TIMEOUT, message, lines, stopped))

        return check

    async def _lines_and_stacks(self, pids: list[int]) -> tuple[str, ...]:
        """The last lines of the log, and the calls that each process stands in; the log gets all of them."""
        lines = list(self._log.tail())
        for pid in pids:
            if catches_signal(pid, DUMP_SIGNAL):
                self._log.clear()
                self._log.note(f"process {pid} hangs in:", logging.WARNING)
                with contextlib.suppress(ProcessLookupError):  # it ends meanwhile
                    os.kill(pid, DUMP_SIGNAL)
                lines += [f"process {pid} hangs in:", *(await self._dumped())[:DUMP_LINES]]
        return tuple(lines)

    async def _dumped(self) -> list[str]:
        """What a process prints of its stack, once no more comes; on a busy machine it begins late."""
        deadline = time.monotonic() + DUMP_LIMIT_S
        dumped: list[str] = []
        while time.monotonic() < deadline:
            await asyncio.sleep(DUMP_S)
            lines = self._log.lines()
            if lines and len(lines) == len(dumped):
                break
            dumped = lines
        return dumped

    def _explained(self, exit: Exit) -> StartFailedError:
        lines = self._lines()
        end = self._end_of(first_exit(lines) or exit, lines)
        if end.is_from_outside:
            return self._failed(FailureKind.START, f"the engine did not start: {end.words}", is_from_outside=True)
        cause, matter = explain(lines) or end.words, matter_of_version(self._spec.vllm_version)
        kind = FailureKind.NO_GPU if cause.startswith(NO_GPU) else FailureKind.START
        words = f"the engine did not start: {cause}{f' ({matter})' if matter else ''}"
        return self._failed(FailureKind.MEMORY if end.lacked_memory or lacks_memory(lines) else kind, words)

    def _failed(self, kind: FailureKind, message: str, *, is_from_outside: bool = False) -> StartFailedError:
        return StartFailedError(Failure(kind, message, self._log.tail(), is_from_outside))


def _value_of(flag: str, argv: tuple[str, ...]) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None
