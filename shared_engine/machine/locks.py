"""The kernel's file locks: released by the kernel, however their holder ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def try_lock(fd: int, operation: int) -> bool:
    """Take the lock without waiting; False if another holds one that forbids it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Release the lock explicitly: a child forked meanwhile would keep it past close()."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_at(path: Path, fd: int) -> bool:
    """True while the open file is the one at ``path``; False after somebody has removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
