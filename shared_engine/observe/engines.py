"""All engines of this user, found in the runtime directory and in ``/proc``.

Looking starts nothing, keeps nothing awake and takes no lock that anybody waits for: who holds a lease is read off
``/proc/locks``; the supervisor's lock is tried in shared mode for an instant, which a supervisor that starts outwaits.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shared_engine.errors import EngineNameError
from shared_engine.machine.gpu import gpu_memory_by_process
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.locks import holders, shared_locks
from shared_engine.observe.processes import process_tree
from shared_engine.runtime.directory import RuntimeDir, runtime_root
from shared_engine.runtime.lease import read_last_use
from shared_engine.runtime.life_stats import LifeStats
from shared_engine.runtime.record import EngineState, Record, boot_id, is_supervised, read_record
from shared_engine.runtime.spec import EngineSpec

MIN_KEY_PREFIX = 4


# ---- looking


def find_engines() -> list[EngineInfo]:
    """Every engine of this user that has a record, with its processes; the most recently used first."""
    root = runtime_root()
    with contextlib.suppress(OSError):
        status = root.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            return []  # another user's folder, or open to them: nothing in it is to be believed
    locks = shared_locks()
    gpu_memory = functools.cache(gpu_memory_by_process)  # asked only where an engine is alive
    found = [
        _info(RuntimeDir(file.parent), record, locks, gpu_memory)
        for file in root.glob("*/record.json")
        if (record := read_record(file)) is not None
    ]
    return sorted(found, key=lambda engine: (not engine.is_alive, -(engine.last_used or 0.0), engine.key))


def look_at(directory: RuntimeDir, spec: EngineSpec, *, processes: bool = False) -> EngineInfo:
    """One engine, which may never have been started.

    Args:
        processes: look at its processes and their memory too.
    """
    record = read_record(directory.record)
    if record is None:
        record = Record(model=spec.model, vllm_version=spec.vllm_version, devices=spec.devices)
    return _info(directory, record, shared_locks(), gpu_memory_by_process if processes else None)


def _info(
    directory: RuntimeDir,
    record: Record,
    locks: Mapping[str, set[int]],
    gpu_memory: Callable[[], Mapping[int, int]] | None,
) -> EngineInfo:
    """
    Args:
        gpu_memory: by PID; None: do not look at processes.
    """
    is_alive = record.boot_id == boot_id() and is_supervised(directory)
    lease_holders = holders(directory.lease, locks) if is_alive else ()
    idle_for_s = _idle_for_s(directory, record) if is_alive and not lease_holders else None
    return EngineInfo(
        state=record.state if is_alive else EngineState.STOPPED,  # whatever an old record says
        model=record.model,
        key=directory.path.name,
        is_alive=is_alive,
        state_since=record.state_since or None,
        progress=record.progress if is_alive else None,
        starts=record.start_number,
        start_s=record.start_s,
        max_model_len=record.max_model_len,
        idle_for_s=idle_for_s,
        last_used=max(record.state_since, _modified(directory.lease)) or None,
        lease_holders=lease_holders,
        devices=record.devices,
        pinned=record.pinned,
        idle_ttl_s=record.idle_ttl_s,
        leaves_at=None if idle_for_s is None else _leaves_at(record, idle_for_s),
        last_error=None if record.failure is None else record.failure.message,
        supervisor_pid=record.supervisor_pid if is_alive else None,
        server_pid=(record.server_pid or None) if is_alive else None,
        socket=record.socket if is_alive and record.server_pid else None,
        urls=tuple(f"http://{address}/v1" for address in record.tcp) if is_alive else (),
        log_file=str(directory.log),
        vllm_version=record.vllm_version or None,
        processes=process_tree(record, gpu_memory()) if is_alive and gpu_memory is not None else None,
        leftovers=() if is_alive else _leftovers(directory, record),
        life=record.life if record.boot_id == boot_id() else LifeStats(),
    )


def _idle_for_s(directory: RuntimeDir, record: Record) -> float | None:
    if record.state not in (EngineState.READY, EngineState.ASLEEP, EngineState.STANDBY):
        return None
    in_state_s = max(0.0, time.time() - record.state_since)
    try:
        with open(directory.lease, "rb") as file:
            last_use = read_last_use(file.fileno())
    except OSError:
        return in_state_s
    if last_use == 0.0:
        return in_state_s
    unused_s = time.monotonic() - last_use
    # The supervisor counts from the end of the start; an engine asleep or in standby has been idle for longer.
    return min(unused_s, in_state_s) if record.state is EngineState.READY else unused_s


def _leaves_at(record: Record, idle_for_s: float) -> float | None:
    is_loaded = record.state in (EngineState.READY, EngineState.ASLEEP)
    if not is_loaded or record.idle_ttl_s is None or record.idle_ttl_s == math.inf:
        return None
    return time.time() + max(0.0, record.idle_ttl_s - idle_for_s)


def _leftovers(directory: RuntimeDir, record: Record) -> tuple[str, ...]:
    shared = (file for file in record.shared_files if record.boot_id == boot_id())
    return (*map(str, sorted(directory.path.glob("*.sock"))), *(file for file in shared if os.path.exists(file)))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


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
        raise EngineNameError(f"no engine is named {name!r}: no engines found in {runtime_root()}")
    raise EngineNameError(
        f"no engine is named {name!r} (a key's first {MIN_KEY_PREFIX} or more digits, a model, or a model's last "
        f"component); there are:\n{listing(engines)}"
    )


def listing(engines: Sequence[EngineInfo]) -> str:
    """One line for each."""
    return "\n".join(f"  {engine.key}  {engine.state.value:<8}  {engine.model}" for engine in engines)


def _is_named(engine: EngineInfo, name: str) -> bool:
    if len(name) >= MIN_KEY_PREFIX and (engine.key or "").startswith(name):
        return True
    return name in (engine.model, engine.name) or (os.path.isdir(name) and os.path.realpath(name) == engine.model)
