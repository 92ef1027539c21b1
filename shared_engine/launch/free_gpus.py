"""Which of several GPUs an engine runs on, where the user has not said.

The one with the most free memory when it is started; later, whichever it is on: equal settings share one engine, so an
engine that is alive decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from shared_engine.machine.gpu import BY_BUS, ORDER, VISIBLE, find_gpus
from shared_engine.machine.memory import GIB
from shared_engine.runtime.directory import RuntimeDir, runtime_root
from shared_engine.runtime.record import is_supervised
from shared_engine.runtime.spec import EngineSpec, read_spec

NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
# The driver counts GPUs by their bus, CUDA by default by their speed.
_VARIABLES = (VISIBLE, ORDER)


def on_free_gpus(spec: EngineSpec) -> EngineSpec:
    """``spec`` on the GPUs to use; as it is where there are not more of them than it needs."""
    if not _has_more_than(len(spec.devices)):
        return spec
    alive = next(_alive_elsewhere(spec), None)
    if alive is not None:
        return alive
    gpus = find_gpus()
    # A GPU in MIG mode has no memory of its own to give: who wants an instance names it.
    whole = [(gpu.memory_free // GIB, gpu) for gpu in gpus if not gpu.is_in_mig_mode and gpu.memory_free is not None]
    if len(whole) <= len(spec.devices):
        return spec
    # By whole GiB, and the first of equal ones: processes that choose at the same time choose the same.
    by_room = [gpu for _, gpu in sorted(whole, key=lambda each: (-each[0], each[1].index))]
    chosen = sorted(by_room[: len(spec.devices)], key=lambda gpu: gpu.index)
    # The driver counts one that is lost, or closed to this process, and CUDA does not: then numbers say nothing.
    are_all_there = [gpu.index for gpu in gpus] == list(range(len(gpus)))
    names = [str(gpu.index) if are_all_there else gpu.uuid for gpu in chosen]
    values = (",".join(names), BY_BUS)
    devices = tuple(f"cuda:{name}" for name in names)
    return replace(
        spec, devices=devices, environment={**spec.environment, **dict(zip(_VARIABLES, values, strict=True))}
    )


def _has_more_than(count: int) -> bool:
    try:
        return sum(1 for _ in NVIDIA_GPUS.iterdir()) > count
    except OSError:
        return False


def _alive_elsewhere(spec: EngineSpec) -> Iterator[EngineSpec]:
    """Engines that are alive and differ in their GPUs only."""
    root = runtime_root()
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        directory = RuntimeDir(path)
        try:
            other = read_spec(directory.spec)
            if _without_gpus(other) == _without_gpus(spec) and is_supervised(directory):
                yield other
        except (OSError, ValueError, TypeError):  # another release's, or half removed
            continue


def _without_gpus(spec: EngineSpec) -> EngineSpec:
    environment = {name: value for name, value in spec.environment.items() if name not in _VARIABLES}
    return replace(spec, devices=(), environment=environment)
