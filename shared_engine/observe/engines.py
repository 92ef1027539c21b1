"""All engines of this user, as the runtime directory and the kernel tell of them. Standard library only.

Looking starts nothing, keeps nothing awake and takes no lock that anybody waits for: who holds a lease is read off
``/proc/locks``; the supervisor's lock is tried in shared mode for an instant, which a supervisor that starts outwaits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared_engine.errors import VLLMError
from shared_engine.observe.processes import ProcessNode, holders, process_tree, read_gpu_memory, shared_locks
from shared_engine.runtime.directory import RuntimeDir, runtime_root
from shared_engine.runtime.lease import read_last_use
from shared_engine.runtime.record import EngineState, Record, boot_id, is_supervised, read_record

MIN_KEY_PREFIX = 4
RECENT_FAILURE_S = 3600.0
"""How long after it failed an engine that nobody owns any more is still worth a line."""
KEY_DIGITS = 8


class EngineNameError(VLLMError):
    """No engine, or more than one, goes by that name. The message lists those there are."""


@dataclass(frozen=True)
class EngineInfo:
    """One engine as it is now.

    Attributes:
        key: the name of its runtime directory.
        state: STOPPED when nobody owns it, whatever an old record says.
        is_alive: a supervisor owns it.
        since: when the state was entered, seconds since the epoch; 0.0 if never.
        progress: how far a start is, in words; empty while none is under way.
        processes: the supervisor and all below it; None when it is not alive.
        memory_bytes, gpu_memory_bytes: of all processes together; None where not known.
        lease_holders: PIDs of the processes that have requests in flight.
        idle_for_s: since the last request; None while leased and where it can't be (starting, failed, ...).
        starts: how often it was started.
        start_seconds: how long the last start took.
        last_used: seconds since the epoch.
        last_error: why the last start or run failed; None once a start has gone well.
        leftovers: files that a supervisor left behind when it was killed.
    """

    key: str
    model: str
    state: EngineState
    is_alive: bool
    directory: Path
    since: float = 0.0
    progress: str = ""
    phase: str | None = None
    processes: ProcessNode | None = None
    socket: str | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    lease_holders: tuple[int, ...] = ()
    idle_for_s: float | None = None
    starts: int = 0
    start_seconds: float | None = None
    devices: tuple[str, ...] = ()
    pinned: bool = False
    last_used: float = 0.0
    last_error: str | None = None
    vllm_version: str = ""
    leftovers: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The last component of the model's name."""
        return self.model.rstrip("/").rpartition("/")[2] or self.key

    @property
    def short_key(self) -> str:
        """Enough of the key for people."""
        return self.key[:KEY_DIGITS]

    @property
    def leases(self) -> int:
        return len(self.lease_holders)

    @property
    def log(self) -> Path:
        return RuntimeDir(self.directory).log

    @property
    def is_worth_a_line(self) -> bool:
        """Alive, or failed a short time ago."""
        return self.is_alive or (self.last_error is not None and time.time() - self.since < RECENT_FAILURE_S)

    def to_json(self) -> dict[str, Any]:
        """Stable names; the README lists them."""
        return {
            "key": self.key,
            "model": self.model,
            "state": self.state.value,
            "state_since": self.since or None,
            "is_alive": self.is_alive,
            "progress": self.progress or None,
            "start_phase": self.phase,
            "processes": None if self.processes is None else asdict(self.processes),
            "memory_bytes": self.memory_bytes,
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "leases": self.leases,
            "lease_holders": list(self.lease_holders),
            "idle_for_s": None if self.idle_for_s is None else round(self.idle_for_s, 1),
            "starts": self.starts,
            "start_seconds": self.start_seconds,
            "devices": list(self.devices),
            "pinned": self.pinned,
            "last_error": self.last_error,
            "socket": self.socket,
            "log_file": str(self.log),
            "vllm_version": self.vllm_version or None,
        }


# ---- finding


def find_engines() -> list[EngineInfo]:
    """Every engine of this user that has a record, the most recently used first."""
    root = runtime_root()
    with contextlib.suppress(OSError):
        if root.lstat().st_uid != os.getuid():
            return []  # somebody else's folder: nothing in it is to be believed
    locks = shared_locks()
    gpu_memory = functools.cache(read_gpu_memory)  # asked only where an engine is alive
    found = [
        _look(RuntimeDir(file.parent), record, locks, gpu_memory)
        for file in root.glob("*/record.json")
        if (record := read_record(file)) is not None
    ]
    return sorted(found, key=lambda engine: (not engine.is_alive, -engine.last_used, engine.key))


def _look(
    directory: RuntimeDir,
    record: Record,
    locks: Mapping[str, set[int]],
    gpu_memory: Callable[[], Mapping[int, int]],
) -> EngineInfo:
    is_alive = record.boot_id == boot_id() and is_supervised(directory)
    lease_holders = holders(directory.lease, locks) if is_alive else ()
    processes = process_tree(record, gpu_memory()) if is_alive else None
    everyone = () if processes is None else tuple(processes.walk())
    progress = record.progress if is_alive else None
    return EngineInfo(
        key=directory.path.name,
        model=record.model,
        state=record.state if is_alive else EngineState.STOPPED,
        is_alive=is_alive,
        directory=directory.path,
        since=record.since,
        progress="" if progress is None else str(progress),
        phase=None if progress is None else progress.phase.value,
        processes=processes,
        socket=record.socket if is_alive and record.server_pid else None,
        memory_bytes=_sum(process.memory_bytes for process in everyone),
        gpu_memory_bytes=_sum(process.gpu_memory_bytes for process in everyone),
        lease_holders=lease_holders,
        idle_for_s=_idle_for_s(directory, record) if is_alive and not lease_holders else None,
        starts=record.generation,
        start_seconds=record.start_seconds,
        devices=record.devices,
        pinned=record.pinned,
        last_used=max(record.since, _modified(directory.lease)),
        last_error=None if record.failure is None else record.failure.message,
        vllm_version=record.vllm_version,
        leftovers=() if is_alive else _leftovers(directory, record),
    )


def _idle_for_s(directory: RuntimeDir, record: Record) -> float | None:
    if record.state not in (EngineState.READY, EngineState.ASLEEP, EngineState.STANDBY):
        return None
    in_state_s = max(0.0, time.time() - record.since)
    try:
        with open(directory.lease, "rb") as file:
            last_use = read_last_use(file.fileno())
    except OSError:
        return in_state_s
    unused_s = time.monotonic() - last_use
    if last_use == 0.0 or unused_s < 0:  # never leased, or not since this boot
        return in_state_s
    # The supervisor counts from the end of the start; an engine asleep or in standby has been idle for longer.
    return min(unused_s, in_state_s) if record.state is EngineState.READY else unused_s


def _leftovers(directory: RuntimeDir, record: Record) -> tuple[Path, ...]:
    shared = (Path(file) for file in record.shared_files if record.boot_id == boot_id())
    return (*sorted(directory.path.glob("*.sock")), *(file for file in shared if file.exists()))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _sum(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# ---- choosing by name


def choose(engines: Sequence[EngineInfo], name: str) -> EngineInfo:
    """The engine that ``name`` means: the beginning of its key, its model, or its model's last component.

    A name that several engines have means the one that is alive.

    Raises:
        EngineNameError: none, or more than one.
    """
    found = [engine for engine in engines if _is_named(engine, name)]
    alive = [engine for engine in found if engine.is_alive]
    if len(alive) == 1 or len(found) == 1:
        return (alive or found)[0]
    if found:
        raise EngineNameError(f"{name!r} means {len(found)} engines; name one by its key:\n{listing(alive or found)}")
    if not engines:
        raise EngineNameError(f"no engine is named {name!r}: there is none in {runtime_root()}")
    raise EngineNameError(
        f"no engine is named {name!r} (a key's first {MIN_KEY_PREFIX} or more digits, a model, or a model's last "
        f"component); there are:\n{listing(engines)}"
    )


def listing(engines: Sequence[EngineInfo]) -> str:
    """One line for each."""
    return "\n".join(f"  {engine.key}  {engine.state.value:<8}  {engine.model}" for engine in engines)


def _is_named(engine: EngineInfo, name: str) -> bool:
    if len(name) >= MIN_KEY_PREFIX and engine.key.startswith(name):
        return True
    return name in (engine.model, engine.name) or (os.path.isdir(name) and os.path.realpath(name) == engine.model)
