"""Leases: a kernel lock that means "a request runs", released by the kernel however the client ends.

    shared lock      held by each process that has requests in flight
    exclusive lock   held by the supervisor while it evicts, so that eviction can't race a request

The file's content is one number: when the last lease ended, on the machine's monotonic clock. The supervisor counts
the idle time from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from pathlib import Path

from shared_engine.machine.locks import is_at, try_lock, unlock

_STAMP = struct.Struct("d")


def open_lease_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_last_use(fd: int) -> float:
    """When the last lease ended (time.monotonic()); 0.0 if none did since this boot of the machine."""
    data = os.pread(fd, _STAMP.size, 0)
    stamp = float(_STAMP.unpack(data)[0]) if len(data) == _STAMP.size else 0.0
    return stamp if 0.0 <= stamp <= time.monotonic() else 0.0  # of the future: it was written before the boot


class Lease:
    """The lease of this process on one engine, shared by all its requests in flight. Thread-safe.

    The first request in flight takes the lock, the last one gives it back; those between only count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._holders = 0
        self._guard = threading.Lock()

    def try_take(self) -> bool:
        """Hold the engine for one more request; False while it is being evicted."""
        with self._guard:
            if self._holders == 0:
                if self._fd is None:
                    try:
                        self._fd = open_lease_file(self._path)
                    except FileNotFoundError:  # the folder was removed: who asks for the engine makes it again
                        return False
                if not try_lock(self._fd, fcntl.LOCK_SH):
                    return False
                if not is_at(self._path, self._fd):
                    # The file was removed: the supervisor has another one, or there is no supervisor. Asking finds out.
                    os.close(self._fd)
                    self._fd = None
                    return False
            self._holders += 1
            return True

    def give_back(self) -> None:
        """End one request's hold."""
        with self._guard:
            assert self._holders > 0 and self._fd is not None
            self._holders -= 1
            if self._holders == 0:
                # On a full disk the supervisor goes by when it last saw the lock held.
                with contextlib.suppress(OSError):
                    os.pwrite(self._fd, _STAMP.pack(time.monotonic()), 0)
                unlock(self._fd)

    def forget_in_child(self) -> None:
        """After a fork, in the child: the hold belongs to the parent, so close without unlocking."""
        self._guard = threading.Lock()
        self._holders = 0
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None


class ExclusiveLease:
    """The supervisor's side: held while it ends the server or puts it to sleep, and nobody may lease it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_lease_file(path)
        self._removed: list[int] = []
        """Open files that somebody has removed while requests held them."""

    def try_take(self) -> bool:
        """False while requests are in flight. Taking it again while it is held is True and changes nothing."""
        if not is_at(self._path, self._fd) and not self._open_again():
            return False
        for fd in tuple(self._removed):
            if not try_lock(fd, fcntl.LOCK_EX):
                return False
            self._removed.remove(fd)  # nobody takes that one again
            self._stamp(read_last_use(fd))
            os.close(fd)
        return try_lock(self._fd, fcntl.LOCK_EX)

    def _open_again(self) -> bool:
        """The file was removed: requests take their leases on another one from now on."""
        try:
            fd = open_lease_file(self._path)
        except OSError:
            return False
        self._removed.append(self._fd)
        self._fd = fd
        return True

    def _stamp(self, last_use: float) -> None:
        if last_use > read_last_use(self._fd):
            with contextlib.suppress(OSError):  # the disk is full
                os.pwrite(self._fd, _STAMP.pack(last_use), 0)

    def give_back(self) -> None:
        """Let requests in again; nothing happens if it is not held."""
        unlock(self._fd)

    def last_use(self) -> float:
        """When the last request ended (time.monotonic()); 0.0 if none did since this boot of the machine."""
        return read_last_use(self._fd)
