"""The devices engines run on: whose turn it is to start on one, and how much memory is free. Standard library only.

Two vLLM servers that start on one GPU at once measure each other's memory and get their KV caches wrong
(vllm-project/vllm issue 55827), so starts take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.locks import try_lock

TURN_POLL_S = 0.05
NVIDIA_SMI_TIMEOUT_S = 10.0
GIB = 1 << 30


class DeviceTurn:
    """``async with DeviceTurn(...)``: the only start of this user on these devices, for that long.

    Kernel locks, so that a killed supervisor's turn ends with it.

    Args:
        root: the folder of all engines.
        who: the engine's model, for those who wait.
        waiting: called with the model whose start is waited for, as long as one is.
    """

    def __init__(self, root: Path, devices: Sequence[str], who: str, waiting: Callable[[str], None]) -> None:
        self._paths = [root / f"{device.replace(':', '-')}.turn" for device in sorted(devices)]
        self._who = who
        self._waiting = waiting
        self._held: list[int] = []

    async def __aenter__(self) -> DeviceTurn:
        while (blocker := self._take_all()) is not None:
            self._waiting(blocker)
            await asyncio.sleep(TURN_POLL_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _take_all(self) -> str | None:
        """Take all or none, so that two that want the same devices can't wait for each other."""
        for path in self._paths:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not try_lock(fd, fcntl.LOCK_EX):
                blocker = os.pread(fd, 1000, 0).decode(errors="replace")
                os.close(fd)
                self._release()
                return blocker
            self._held.append(fd)
            with contextlib.suppress(OSError):  # on a full disk those who wait don't learn the name
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._who.encode(), 0)
        return None

    def _release(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()


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
        return max(int(self.share * memory.total), self.size)


async def shortfall(devices: Sequence[str], need: MemoryNeed) -> str | None:
    """Which device lacks how much, in words; None if the start fits, or if the machine does not tell."""
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


def nvidia_smi(query: str) -> list[list[str]]:
    """The rows of an ``nvidia-smi`` query; empty where there is no such command, or it fails."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=NVIDIA_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == query.count(",") + 1]


async def wait_released(devices: Sequence[str], pids: Sequence[int], timeout: float) -> bool:
    """Return when no GPU counts memory for these processes any more; the driver may take a moment after their end."""
    if not any(device.startswith("cuda") for device in devices):
        return True
    deadline = asyncio.get_running_loop().time() + timeout
    wanted = {str(pid) for pid in pids}
    while True:
        rows = await asyncio.to_thread(nvidia_smi, "--query-compute-apps=pid,used_memory")
        if not wanted & {row[0] for row in rows}:
            return True
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(TURN_POLL_S)
