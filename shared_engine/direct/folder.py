"""The private folder of one engine under this process: its log, and vLLM's temporary files.

    <runtime directory>/direct/<pid>-<number>/
        owner.lock   held by the process for as long as it lives
        engine.log   the output of vLLM's processes
        tmp/         their temporary files, and the sockets between them

What a killed process has left is removed by the next one that starts an engine so.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared_engine.machine.locks import try_lock, unlock
from shared_engine.runtime.directory import RuntimeDir, runtime_root
from shared_engine.runtime.engine_log import RING_LINES, TAIL_LINES
from shared_engine.runtime.redacted import redacted

OWNER = "owner.lock"
MAX_READ_BYTES = 1 << 20
_numbers = itertools.count(1)


class DirectFolder:
    """Made by constructing one.

    Raises:
        SettingsError: the runtime directory can't be used.
    """

    def __init__(self) -> None:
        above = RuntimeDir(runtime_root() / "direct")
        above.prepare()
        self.directory = RuntimeDir(above.path / f"{os.getpid()}-{next(_numbers)}")
        with _alone(above.path):
            _sweep(above.path)
            self.directory.prepare()
            self._owner = os.open(self.directory.path / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._owner, fcntl.LOCK_EX)
        self.log = self.directory.log

    def begin_start(self) -> None:
        """Forget the start before."""
        self.directory.clear_scratch()
        with contextlib.suppress(OSError):
            self.log.unlink(missing_ok=True)

    def lines(self) -> list[str]:
        """The last lines of the log."""
        try:
            with open(self.log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - RING_LINES * 200))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [redacted(line.rstrip()) for line in text.splitlines()[-RING_LINES:] if line.strip()]

    def read(self, position: int) -> bytes:
        """Of the log, what comes after ``position``; of a flood a part."""
        try:
            with open(self.log, "rb") as file:
                file.seek(position)
                return file.read(MAX_READ_BYTES)
        except OSError:
            return b""

    def tail(self) -> tuple[str, ...]:
        return tuple(self.lines()[-TAIL_LINES:])

    def remove(self) -> None:
        """The app ends: nothing is written here any more."""
        shutil.rmtree(self.directory.path, ignore_errors=True)
        os.close(self._owner)

    def close_in_child(self) -> None:
        """After a fork, in the child: it must not keep the parent's lock."""
        os.close(self._owner)


@contextlib.contextmanager
def _alone(above: Path) -> Iterator[None]:
    """One process at a time makes and removes folders: one that is being made has no owner yet."""
    fd = os.open(above / "folders.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock(fd)
        os.close(fd)


def _sweep(above: Path) -> None:
    for owner_file in above.glob(f"*/{OWNER}"):
        owner = os.open(owner_file, os.O_RDWR | os.O_CLOEXEC)
        try:
            if try_lock(owner, fcntl.LOCK_EX):
                shutil.rmtree(owner_file.parent, ignore_errors=True)
        finally:
            os.close(owner)
