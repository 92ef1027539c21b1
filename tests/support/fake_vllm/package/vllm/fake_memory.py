"""A device with memory for one engine: a lock on a file, which the kernel gives back when the group is gone."""

from __future__ import annotations

import fcntl
import os


class Memory:
    """Made before the EngineCore is forked, which then holds it as well. No path: there is memory for all."""

    def __init__(self, path: str | None) -> None:
        self._fd = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT)

    def try_take(self) -> bool:
        if self._fd is None:
            return True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def free(self) -> None:
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
