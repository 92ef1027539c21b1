"""A process group: is it there, signal it, end it, collect it. Believes the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from shared_engine.machine.proc import open_process, shared_files

PR_SET_CHILD_SUBREAPER = 36
END_POLL_S = 0.01
GIVE_UP_S = 30.0


def group_exists(pgid: int) -> bool:
    """True while a process of the group is left, a zombie too."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True


def signal_group(pgid: int, number: signal.Signals) -> None:
    """Send a signal to every process of the group, if any is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, number)


def kill_marked(pids: Iterable[int], variable: str) -> set[str]:
    """SIGKILL to those of ``pids`` that have ``variable`` (``NAME=value``) in their environment.

    A PID may be another process's by now. So each is held by a file descriptor before it is looked at, where it can be.

    Returns:
        Their files of shared memory, which they leave behind.
    """
    files: set[str] = set()
    for pid in pids:
        process = open_process(pid)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if os.fsencode(variable) in environment:
                files.update(shared_files([pid]))
                if process is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
        except OSError:  # it has ended, or is another user's
            continue
        finally:
            if process is not None:
                os.close(process)
    return files


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
