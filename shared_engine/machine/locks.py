"""The kernel's file locks. Standard library only."""

from __future__ import annotations

import fcntl


def try_lock(fd: int, operation: int) -> bool:
    """Take the lock without waiting; False if another holds one that forbids it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
