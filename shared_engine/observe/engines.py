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
    return sorted(found, key=_by_use)


def _by_use(engine: EngineInfo) -> tuple[bool, bool, float, str]:
    """The living first, of these the ones in use, then the most recently used."""
    idle_since = 0.0 if engine.leases else -(engine.last_used or 0.0)
    return not engine.is_alive, not engine.leases, idle_since, engine.key or ""


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
    unused_s = _unused_s(directory)
    idle_for_s = _idle_for_s(record, unused_s) if is_alive and not lease_holders else None
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
        last_used=time.time() if lease_holders else _last_used(record, unused_s),
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


def _unused_s(directory: RuntimeDir) -> float | None:
    """Seconds since the last request ended; None where none did since this boot of the machine.

    Not by the file's times: the supervisor renews them, so that nobody tidies up a folder that is in use.
    """
    try:
        with open(directory.lease, "rb", opener=_at_once) as file:
            last_use = read_last_use(file.fileno())
    except OSError:
        return None
    return time.monotonic() - last_use if last_use else None


def _at_once(path: str, flags: int) -> int:
    """Whatever stands there: a pipe would have its reader wait for somebody who writes."""
    return os.open(path, flags | os.O_NONBLOCK)


def _idle_for_s(record: Record, unused_s: float | None) -> float | None:
    if record.state not in (EngineState.READY, EngineState.ASLEEP, EngineState.STANDBY):
        return None
    in_state_s = max(0.0, time.time() - record.state_since)
    if unused_s is None:
        return in_state_s
    # The supervisor counts from the end of the start; an engine asleep or in standby has been idle for longer.
    return min(unused_s, in_state_s) if record.state is EngineState.READY else unused_s


def _last_used(record: Record, unused_s: float | None) -> float | None:
    return (record.state_since or None) if unused_s is None else max(time.time() - unused_s, record.state_since)


def _leaves_at(record: Record, idle_for_s: float) -> float | None:
    is_loaded = record.state in (EngineState.READY, EngineState.ASLEEP)
    if not is_loaded or record.idle_ttl_s is None or record.idle_ttl_s == math.inf:
        return None
    return time.time() + max(0.0, record.idle_ttl_s - idle_for_s)


def _leftovers(directory: RuntimeDir, record: Record) -> tuple[str, ...]:
    shared = (file for file in record.shared_files if record.boot_id == boot_id())
    return (*map(str, sorted(directory.path.glob("*.sock"))), *(file for file in shared if os.path.exists(file)))


# ---- choosing by name


def choose(engines: Sequence[EngineInfo], name: str) -> EngineInfo:
    """The engine that ``name`` means: the beginning of its key, its model, or its model's last component.

    A name that several engines have means the one that is in use or can be; else the one that has failed and is still
    there; else the last used.

    Raises:
        EngineNameError: none, or more than one that is alive.
    """
    found = [engine for engine in engines if _is_named(engine, name)]
    alive = running(found)
    if len(alive) == 1 or (found and not alive):
        return (alive or found)[0]
    if found:
        raise EngineNameError(f"{name!r} means {len(alive)} engines; name one by its key:\n{listing(alive)}")
    if not engines:
        raise EngineNameError(f"no engine is named {name!r}: no engines found in {runtime_root()}")
    raise EngineNameError(
        f"no engine is named {name!r} (a key's first {MIN_KEY_PREFIX} or more digits, a model, or a model's last "
        f"component); there are:\n{listing(engines)}"
    )


def running(engines: Sequence[EngineInfo]) -> list[EngineInfo]:
    """Those that are alive, without the failed ones, unless there are no others: of these no model is there to end."""
    alive = [engine for engine in engines if engine.is_alive]
    return [engine for engine in alive if engine.state is not EngineState.FAILED] or alive


def listing(engines: Sequence[EngineInfo]) -> str:
    """One line for each."""
    return "\n".join(f"  {engine.key}  {engine.state.value:<8}  {engine.model}" for engine in engines)


def _is_named(engine: EngineInfo, name: str) -> bool:
    if len(name) >= MIN_KEY_PREFIX and (engine.key or "").startswith(name):
        return True
    model = engine.model or ""
    names = (model, engine.name, model.rstrip("/").rpartition("/")[2])
    return name in names or (os.path.isdir(name) and os.path.realpath(name) == model)
