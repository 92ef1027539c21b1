"""A server's process group: is it there, signal it, collect it. Believes the kernel. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        # Between its fork and its setsid the server is not a group yet.
        return Path(f"/proc/{pgid}").exists() and not is_zombie(pgid)
    return True


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def signal_group(pgid: int, number: signal.Signals) -> None:
    if not pgid:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pgid, number)
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
