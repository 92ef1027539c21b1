"""The memory in use on the first GPU; RAM where there is none. Standard library only."""

from __future__ import annotations

from shared_engine.machine.gpu import find_gpus
from shared_engine.machine.memory import ram
from shared_engine.machine.nvidia import driver_release

MIB = 1 << 20


def gpu_name() -> str | None:
    """Name and driver of the first GPU; None where there is none."""
    gpus = find_gpus()
    return f"{gpus[0].name}, driver {driver_release()}" if gpus else None


def used_mib(is_cpu: bool) -> int:
    """In use by whomever, on the GPU; with ``is_cpu`` of the machine's RAM."""
    return memory(is_cpu)[0] // MIB


def memory(is_cpu: bool) -> tuple[int, int]:
    """Bytes in use and in all.

    Raises:
        RuntimeError: they are not told.
    """
    if is_cpu:
        if (of := ram()) is not None:
            return of.total - of.free, of.total
    elif (gpus := find_gpus()) and gpus[0].memory_used is not None and gpus[0].memory_total is not None:
        return gpus[0].memory_used, gpus[0].memory_total
    raise RuntimeError("the memory in use is not told")
