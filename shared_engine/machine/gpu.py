"""NVIDIA GPUs, as ``nvidia-smi`` shows them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence

NVIDIA_SMI_TIMEOUT_S = 10.0
POLL_S = 0.2  # each look starts a process


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


def gpu_memory_by_process() -> dict[int, int]:
    """Bytes on all GPUs by PID."""
    found: dict[int, int] = {}
    for pid, used in nvidia_smi("--query-compute-apps=pid,used_memory"):
        with contextlib.suppress(ValueError):  # "[N/A]"
            found[int(pid)] = found.get(int(pid), 0) + (int(used) << 20)
    return found


async def wait_released(devices: Sequence[str], pids: Sequence[int], timeout: float) -> bool:
    """Return when no GPU counts memory for these processes any more; the driver may take a moment after their end.

    False when one still does after ``timeout`` seconds.
    """
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
        await asyncio.sleep(POLL_S)
