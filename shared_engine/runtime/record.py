"""The record: what the supervisor publishes about its engine. One writer, any number of readers.

States and their transitions live here. Facts that change by the second (is it leased, is it idle) are not states.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from shared_engine.machine.locks import try_lock, unlock
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.files import read_own, write_atomically
from shared_engine.runtime.life_stats import LifeStats
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.typed_json import parse, typed

_NO_LOCK_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


class EngineState(str, Enum):
    """STOPPED, STANDBY and FAILED promise that no server process is left and its memory is back."""

    STOPPED = "stopped"  # nothing runs
    STARTING = "starting"  # vLLM is being imported, or the server loads the model
    READY = "ready"  # the server answers; may be leased
    ASLEEP = "asleep"  # weights in RAM, the GPU's memory is free; the next request wakes it (CUDA only)
    STOPPING = "stopping"  # evicting; new leases wait
    STANDBY = "standby"  # the model is gone, the launcher keeps vLLM imported
    FAILED = "failed"  # the last start failed, or the server died; the next request starts it again


TRANSITIONS: dict[EngineState, frozenset[EngineState]] = {
    EngineState.STOPPED: frozenset({EngineState.STARTING}),
    EngineState.STARTING: frozenset({EngineState.READY, EngineState.FAILED, EngineState.STOPPING}),
    EngineState.READY: frozenset({EngineState.ASLEEP, EngineState.STOPPING, EngineState.FAILED}),
    EngineState.ASLEEP: frozenset({EngineState.READY, EngineState.STOPPING, EngineState.FAILED}),
    EngineState.STOPPING: frozenset({EngineState.STANDBY, EngineState.STOPPED}),
    EngineState.STANDBY: frozenset({EngineState.STARTING, EngineState.STOPPED}),
    EngineState.FAILED: frozenset({EngineState.STARTING, EngineState.STOPPED}),
}


class FailureKind(str, Enum):
    """Why a start or a run ended."""

    START = "start"  # the start failed
    MEMORY = "memory"  # the start failed for lack of memory, which another engine may hold
    NO_GPU = "no_gpu"  # vLLM found no GPU that it can use
    TIMEOUT = "timeout"  # the start took too long, or hung
    NOT_INSTALLED = "not_installed"  # no vLLM that could be imported
    DIED = "died"  # the server ended by itself, or hung
    STOPPED = "stopped"  # somebody stopped the engine while it started


@dataclass(frozen=True)
class Failure:
    """Why the last start or run ended.

    Attributes:
        message: what failed and what to do.
        log_tail: the engine's last log lines, oldest first.
        is_from_outside: somebody has ended the engine, or a process of it, as with a signal: another start may go well.
    """

    kind: FailureKind
    message: str
    log_tail: tuple[str, ...] = ()
    is_from_outside: bool = False

    @property
    def counted_as(self) -> str:
        """In LifeStats."""
        return "killed" if self.is_from_outside else self.kind.value


@dataclass(frozen=True)
class Record:
    """One engine at one moment. PIDs are hints: only kernel locks prove who lives."""

    state: EngineState = EngineState.STOPPED
    model: str = ""
    vllm_version: str = ""
    start_number: int = 0
    """Counts the starts of this engine; each has its own socket."""
    socket: str = ""
    supervisor_pid: int = 0
    launcher_pid: int = 0
    server_pid: int = 0
    """Also the server's process group and session."""
    boot_id: str = ""
    state_since: float = 0.0
    """When the state was entered, seconds since the epoch."""
    max_model_len: int | None = None
    """Longest prompt and answer together of the server that was started last, in tokens, as it says itself."""
    max_num_seqs: int | None = None
    """How many requests the server runs at once, on all its EngineCores, as it says itself."""
    start_s: float | None = None
    """How long the last start took, in seconds."""
    progress: Progress | None = None
    """How far a start has come; None when none is under way."""
    devices: tuple[str, ...] = ()
    """What it runs on: ``cpu``, or ``cuda:0``, ..."""
    pinned: bool = False
    """Never evicted to make room for another engine."""
    idle_ttl_s: float | None = None
    """Seconds from the end of the last request until the model leaves memory; infinite for never. None: not told."""
    made_room: tuple[str, ...] = ()
    """Engines that were evicted as memory was short for the last start, by name."""
    tcp: tuple[str, ...] = ()
    """Where the server listens for other programs, as ``host:port``."""
    shared_files: tuple[str, ...] = ()
    """Shared memory of the server's processes, which a killed process leaves behind."""
    failure: Failure | None = None
    life: LifeStats = field(default_factory=LifeStats)
    """Of all starts since the machine was booted, also by earlier supervisors."""

    @property
    def is_usable(self) -> bool:
        """True when the server answers, and is not known to be dying."""
        return self.state is EngineState.READY and self.failure is None

    def entered(self, state: EngineState, **changes: Any) -> Record:
        """This record in another state.

        Raises:
            ValueError: the transition is not in TRANSITIONS, which is a mistake in the supervisor.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no transition {self.state.value} -> {state.value}")
        return replace(self, state=state, **changes)

    def to_json(self) -> str:
        progress = None if self.progress is None else self.progress.to_json()
        return json.dumps({**asdict(self), "state": self.state.value, "progress": progress})


def is_supervised(directory: RuntimeDir) -> bool:
    """True while a supervisor lives, by its kernel lock."""
    try:
        fd = os.open(directory.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in _NO_LOCK_FILE:
            return False
        raise
    try:
        if not try_lock(fd, fcntl.LOCK_SH):  # shared: those who look don't see each other
            return True
        unlock(fd)
    finally:
        os.close(fd)
    return False


def current_record(directory: RuntimeDir) -> Record | None:
    """The record of an engine that has an owner; None if nobody owns it now, whatever an old record says."""
    record = read_record(directory.record)
    if record is None or record.boot_id != boot_id() or not is_supervised(directory):
        return None
    return record


def boot_id() -> str:
    """Names this boot of the machine; a record of another boot speaks of processes that are gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_record(path: Path, record: Record) -> None:
    """
    Raises:
        OSError: it can't be written.
    """
    write_atomically(path, record.to_json())


def read_record(path: Path) -> Record | None:
    """The record, or None if there is none that can be believed (never written, cut off by a full disk, not ours)."""
    try:
        fields = parse(read_own(path))
        fields["state"]  # the others have defaults
        return typed(Record, fields, ignore_unknown=True)
    except (OSError, ValueError, KeyError):
        return None
