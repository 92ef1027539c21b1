"""Memory of the machine and of its GPUs: how much there is, how much is free, what is short."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.gpu import device_named, find_gpus, in_cuda_order
from shared_engine.machine.nvml import Gpu

GIB = 1 << 30
CGROUPS, CGROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """A device's memory, in bytes."""

    free: int
    total: int


@dataclass(frozen=True)
class MemoryNeed:
    """What a start asks of each of its devices: a share of all its memory, and a number of bytes."""

    share: float = 0.0
    size: int = 0

    def of(self, memory: Memory) -> int:
        """In bytes, on a device with this memory."""
        return max(int(self.share * memory.total), self.size)


async def shortfall(
    devices: Sequence[str], need: MemoryNeed, device_order: str | None = None, held_by: Collection[int] = ()
) -> str | None:
    """Which device lacks how much, in words; None if the start fits, or if nothing is known of the device.

    Args:
        devices: ``cpu``, or GPUs as CUDA_VISIBLE_DEVICES names them: ``cuda:0``, ``cuda:GPU-...``, ``cuda:MIG-...``.
        device_order: CUDA_DEVICE_ORDER, which decides what their numbers mean; None where it is not set.
        held_by: processes whose memory of the GPUs counts as free: those of one that wakes.
    """

    def look() -> dict[str, Memory | None]:
        is_on_gpus = any(device.startswith("cuda") for device in devices)
        gpus = in_cuda_order(find_gpus(), device_order) if is_on_gpus else ()
        return {device: _memory_of(device, gpus, held_by) for device in devices}

    for device, memory in (await asyncio.to_thread(look)).items():
        if memory is not None and memory.free < need.of(memory):
            return (
                f"{device} has {memory.free / GIB:.2f} of {memory.total / GIB:.2f} GiB free, "
                f"{need.of(memory) / GIB:.2f} are needed"
            )
    return None


def _memory_of(device: str, gpus: Sequence[Gpu], held_by: Collection[int]) -> Memory | None:
    if device == "cpu":
        return ram()
    gpu = device_named(device, gpus)
    if gpu is None or gpu.memory_free is None or gpu.memory_total is None:  # it shares the machine's memory
        return None
    return Memory(gpu.memory_free + sum(gpu.memory_by_pid.get(pid) or 0 for pid in held_by), gpu.memory_total)


def ram() -> Memory | None:
    """The machine's own, or what its cgroups leave to this process, as in a container; None where it is not told."""
    machine = _ram_of_machine()
    found = [*([] if machine is None else [machine]), *_ram_of_cgroups()]
    return Memory(min(each.free for each in found), min(each.total for each in found)) if found else None


def _ram_of_machine() -> Memory | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
        return Memory(sizes["MemAvailable"], sizes["MemTotal"])
    except (OSError, KeyError, ValueError):
        return None  # not Linux as we know it: then vLLM has to find out by itself


def _ram_of_cgroups() -> Iterator[Memory]:
    """Of the cgroups that this process is in, those that have a limit: version 2, and version 1."""
    try:
        groups = CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used, prefix = CGROUP_FILES, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, used, prefix = (
                CGROUP_FILES / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_",
            )
        else:
            continue
        # In a container the path may be the host's, and lead nowhere: the container's own cgroup is at the top then.
        group = top / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
            with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
                total = int((folder / limit).read_text())
                stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
                cached = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active"))
                yield Memory(max(0, total - int((folder / used).read_text()) + cached), total)


def total_memory() -> int:
    """Bytes of RAM this process may have: the machine's, or less in a container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)
