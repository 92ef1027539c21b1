"""A server's process group: is it there, what does it use, end it, collect it. Believes the kernel.

Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
END_POLL_S = 0.01
GIVE_UP_S = 30.0

# POSIX shared memory and semaphores as Python names them; whoever is killed leaves them behind.
_SHARED_FILE = re.compile(r"/dev/shm/(?:psm_|sem\.mp-)\S+")


def group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True


def signal_group(pgid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, number)


def reap_children() -> None:
    """Collect every child that has ended, adopted ones too, so that a killed group is gone and not zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def end_group(pgid: int, grace_s: float) -> bool:
    """SIGTERM, then SIGKILL after ``grace_s``; return when the group is gone.

    False when it survives SIGKILL for GIVE_UP_S: the kernel holds it (a driver, a file system).
    """
    kill_at = time.monotonic() + grace_s
    if grace_s > 0:
        signal_group(pgid, signal.SIGTERM)
    while True:
        reap_children()
        if not group_exists(pgid):
            return True
        now = time.monotonic()
        if now >= kill_at + GIVE_UP_S:
            return False
        if now >= kill_at:
            signal_group(pgid, signal.SIGKILL)
        await asyncio.sleep(END_POLL_S)


def group_members(pgid: int) -> list[int]:
    """The processes of a group, zombies left out."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and int(fields[2]) == pgid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def catches_signal(pid: int, number: signal.Signals) -> bool:
    """True when a process has a handler for a signal that would else end it; False where that can't be known."""
    with contextlib.suppress(OSError):  # it ends meanwhile
        found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
    return False


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time used by processes, those that have ended left out."""
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def waited_seconds(pids: Iterable[int]) -> float:
    """How long threads of these processes were ready to run and had no processor; 0 where the kernel does not count."""
    waited_ns = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            waited_ns += sum(int(file.read_text().split()[1]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return waited_ns / 1e9


def shared_files(pids: Iterable[int]) -> tuple[str, ...]:
    """Files of shared memory that processes have mapped and that still have a name."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found.update(path for path in _SHARED_FILE.findall(maps) if os.path.exists(path))
    return tuple(sorted(found))


def remove_files(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
