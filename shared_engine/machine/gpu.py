"""NVIDIA GPUs: a look at all of them that ends in time, in CUDA's order, and those that CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence

from shared_engine.machine.nvidia import ask_driver
from shared_engine.machine.nvml import Gpu, NvmlError, ask_nvml

LOOK_TIMEOUT_S = 10.0
POLL_S = 0.1
VISIBLE, ORDER, BY_BUS = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"

_unanswered: threading.Thread | None = None


# ---- all of them


def find_gpus() -> tuple[Gpu, ...]:
    """All GPUs of this machine, as the driver counts; none where there is no driver, or it does not answer."""
    try:
        return look_at_gpus()
    except NvmlError:
        return ()


def look_at_gpus() -> tuple[Gpu, ...]:
    """As ``find_gpus``.

    Raises:
        NvmlError: there is no driver, or it fails, or does not answer within LOOK_TIMEOUT_S seconds.
    """
    global _unanswered
    silent = f"the NVIDIA driver does not answer in {LOOK_TIMEOUT_S:g} s"
    if sys.is_finalizing():
        raise NvmlError("the interpreter is shutting down")  # where a thread would never begin
    if _unanswered is not None and _unanswered.is_alive():
        raise NvmlError(silent)
    found: list[tuple[Gpu, ...] | Exception] = []

    def look() -> None:
        try:
            found.append(ask_nvml())
        except Exception as exc:
            found.append(exc)

    # A driver that hangs holds its caller in the kernel, for good: in a thread, which keeps no process from ending.
    thread = threading.Thread(target=look, name="vllm-local-nvml", daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:
        raise NvmlError(f"no thread could be started: {exc}") from exc
    thread.join(LOOK_TIMEOUT_S)
    if not found:
        _unanswered = thread
        raise NvmlError(silent)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _forget_in_child() -> None:
    global _unanswered
    _unanswered = None


os.register_at_fork(after_in_child=_forget_in_child)


# ---- by CUDA's numbers


def in_cuda_order(gpus: Sequence[Gpu], order: str | None) -> tuple[Gpu, ...]:
    """``gpus``, which the driver counts by their bus, as CUDA counts them.

    Args:
        order: CUDA_DEVICE_ORDER; None where it is not set: the fastest first, and equal ones by their bus.
    """
    if order == BY_BUS or len({gpu.name for gpu in gpus}) < 2:
        return tuple(gpus)
    ranks = _ranks_by_speed()
    return tuple(sorted(gpus, key=lambda gpu: ranks.get(gpu.uuid, len(ranks))))


@functools.cache
def _ranks_by_speed() -> Mapping[str, int]:
    """CUDA's own number of each GPU, by UUID. Takes a process, and as long as CUDA takes to come up."""
    environment = {name: value for name, value in os.environ.items() if name not in (VISIBLE, ORDER)}
    driver = ask_driver(sys.executable, environment)
    return {} if driver is None else {uuid: rank for rank, uuid in enumerate(driver.uuids)}


def visible_gpus(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """What of ``gpus`` CUDA shows, in its order: whole GPUs, and the instances of those in MIG mode.

    Args:
        gpus: in CUDA's order.
        visible: CUDA_VISIBLE_DEVICES: numbers, UUIDs, or their beginnings. As CUDA reads it: what follows a name that
            is not one does not count, and a device that is named twice makes it show none. None: it is not set.
    """
    if visible is None:
        return tuple(device for gpu in gpus for device in (gpu.instances if gpu.is_in_mig_mode else (gpu,)))
    found: list[Gpu] = []
    for name in visible.split(","):
        device = _named(gpus, name.strip())
        if device is None:
            break
        if device in found:
            return ()
        found.append(device)
    return tuple(found)


def _named(gpus: Sequence[Gpu], name: str) -> Gpu | None:
    """The device of one name in CUDA_VISIBLE_DEVICES; None where that is not one, or not of one alone."""
    if name.startswith(("GPU-", "MIG-")):
        each = [*gpus, *(instance for gpu in gpus for instance in gpu.instances)]
        found = [device for device in each if device.uuid.startswith(name)]
        device = found[0] if len(found) == 1 else None
    else:
        number = re.match(r"\d+", name)
        device = gpus[int(number[0])] if number is not None and int(number[0]) < len(gpus) else None
    if device is not None and device.is_in_mig_mode:  # CUDA takes its first instance
        return device.instances[0] if device.instances else None
    return device


def device_named(device: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU, or instance, that an engine's device means (``cuda:0``, ``cuda:GPU-...``); None if it is not known.

    Args:
        gpus: in CUDA's order.
    """
    return _named(gpus, device.removeprefix("cuda:")) if device.startswith("cuda:") else None


def same_names(devices: Sequence[str], gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """``devices`` by their UUIDs, as far as they are known: one may be called by its number, too, or by a beginning."""
    known = ((device, device_named(device, gpus)) for device in devices)
    return tuple(device if gpu is None else f"cuda:{gpu.uuid}" for device, gpu in known)


# ---- by processes


def gpu_memory_by_process() -> dict[int, int]:
    """Bytes on all GPUs by PID."""
    found: dict[int, int] = {}
    for gpu in find_gpus():
        for device in gpu.instances or (gpu,):
            for pid, used in device.memory_by_pid.items():
                if used is not None:
                    found[pid] = found.get(pid, 0) + used
    return found


async def wait_released(devices: Sequence[str], pids: Sequence[int], timeout: float) -> bool:
    """Return when no GPU counts memory for these processes any more; the driver may take a moment after their end.

    False when one still does after ``timeout`` seconds.
    """
    if not any(device.startswith("cuda") for device in devices):
        return True
    import asyncio  # late: who looks at GPUs, such as `vllm-local status`, waits for none

    deadline = asyncio.get_running_loop().time() + timeout
    wanted = set(pids)
    while True:
        gpus = await asyncio.to_thread(find_gpus)
        if not any(wanted & {*device.memory_by_pid} for gpu in gpus for device in (gpu, *gpu.instances)):
            return True
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(POLL_S)
