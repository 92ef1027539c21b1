"""Memory of the machine and of its GPUs: how much there is, how much is free, what is short."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.gpu import nvidia_smi

GIB = 1 << 30


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


async def shortfall(devices: Sequence[str], need: MemoryNeed) -> str | None:
    """Which device lacks how much, in words; None if the start fits, or if nothing is known of the device."""
    known = await asyncio.to_thread(read_memory)
    for device in devices:
        memory = known.get(device)
        if memory is not None and memory.free < need.of(memory):
            return (
                f"{device} has {memory.free / GIB:.2f} of {memory.total / GIB:.2f} GiB free, "
                f"{need.of(memory) / GIB:.2f} are needed"
            )
    return None


def read_memory() -> dict[str, Memory]:
    """Memory by device: ``cpu``, and each GPU by its number (``cuda:0``) and its UUID (``cuda:GPU-...``)."""
    found: dict[str, Memory] = {}
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
        found["cpu"] = Memory(sizes["MemAvailable"], sizes["MemTotal"])
    except (OSError, KeyError, ValueError):
        pass  # not Linux as we know it: then vLLM has to find out by itself
    for index, uuid, free, total in nvidia_smi("--query-gpu=index,uuid,memory.free,memory.total"):
        if free.isdigit() and total.isdigit():  # "[N/A]" on a GPU that shares the machine's memory
            memory = Memory(int(free) << 20, int(total) << 20)
            found[f"cuda:{index}"] = found[f"cuda:{uuid}"] = memory
    return found


def total_memory() -> int:
    """Bytes of RAM this process may have: the machine's, or less in a container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)
