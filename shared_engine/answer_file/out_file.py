"""A file of answers: whole lines only, one for each row, whatever ends this process; and what is already in it.

It is locked, read, cut after its last whole line, and appended to.
"""

from __future__ import annotations

import fcntl
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from shared_engine.answer_file.identity import Digests, Identity, is_begun, read_written
from shared_engine.errors import VLLMError
from shared_engine.machine.locks import is_at, try_lock

_READ_BYTES = 1 << 20


class OutputError(VLLMError):
    """The output can't be written: a full disk, most of the time. What is written of it stays whole."""


def unwritable(name: str, error: OSError) -> OutputError:
    return OutputError(f"{name} can't be written: {error.strerror or error}")


class OutFile:
    """A file, which belongs to this process until it is closed.

    Attributes:
        answered: a byte for each row: 0 where it is not answered, 2 where it was by an error when the file was opened.
        before: how many were answered when it was opened.
        errors: how many are answered by an error.
        is_sorted: its lines are in the order of the rows.
    """

    def __init__(self, path: Path, rows: Digests, hows: Sequence[str], unit: str = "line", mode: int = 0o666) -> None:
        """
        Args:
            hows: digests of what decides the answers beside the rows, each of which a line may have.
            unit: what a row is called.
            mode: of a new file, within the umask.

        Raises:
            OutputError: another process writes it, it is of other rows or parameters, or can't be written.
        """
        self.name = str(path)
        self._path = path.resolve()  # what a link points to: the link itself would be replaced
        self._temporary = self._path.with_name(f".{self._path.name}.new")
        self._rows, self._hows, self._unit, self._mode = rows, hows, unit, mode
        try:
            self._fd = self._opened()
            try:
                self._read()
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as exc:
            raise unwritable(self.name, exc) from exc

    def _opened(self) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
            if not try_lock(fd, fcntl.LOCK_EX):
                os.close(fd)
                raise OutputError(f"{self.name} is being written by another process: wait for it, or choose another")
            if is_at(self._path, fd):
                return fd
            os.close(fd)  # replaced meanwhile, by the one that had the lock

    # ---- what is in it

    def _read(self) -> None:
        self.answered = bytearray(len(self._rows.digests))
        self.before = self.errors = self._size = self._last = 0
        self.is_sorted = True
        for position, line in enumerate(self._lines(), 1):
            if b"\0" in line and position > 1:
                return  # a crash of the machine left it unwritten: what follows is asked again
            if not line.endswith(b"\n"):
                if not is_begun(line):
                    raise self._not_ours(position)
                return
            read = read_written(line)
            if read is None:
                raise self._not_ours(position)
            self._check(*read)
            self._size += len(line)

    def _check(self, identity: Identity, is_error: bool) -> None:
        number = identity.number
        if identity.how not in self._hows:
            raise OutputError(
                f"{self.name} was written with another model or other parameters: {self._another_or_remove}"
            )
        if not self._rows.says(identity):
            raise OutputError(
                f"{self.name} has an answer to {self._unit} {number}, which is not in the input, or has changed there: "
                f"{self._another_or_remove}"
            )
        if self.answered[number - 1]:
            raise OutputError(f"{self.name} has two answers to {self._unit} {number}: {self._another_or_remove}")
        self._mark(number, 2 if is_error else 1)
        self.before += 1
        self.errors += is_error

    def without_errors(self) -> bytes:
        """``answered``, as it is after ``drop_errors``."""
        return bytes(self.answered.replace(b"\2", b"\0"))

    def _mark(self, number: int, how: int = 1) -> None:
        if number > len(self.answered):  # of an input that was not surveyed
            self.answered.extend(bytes(number - len(self.answered)))
        self.answered[number - 1] = how
        self.is_sorted = self.is_sorted and number > self._last
        self._last = number

    _another_or_remove = "choose another output file, or remove this one to begin again"

    def _not_ours(self, position: int) -> OutputError:
        return OutputError(
            f"{self.name} was not written by this command: see its line {position}. Nothing was changed in it; "
            "choose another output file"
        )

    def _lines(self) -> Iterator[bytes]:
        with open(self._path, "rb", buffering=_READ_BYTES) as file:
            yield from file

    # ---- appending

    def begin(self) -> None:
        """Cut off a line that was only half written. Before, nothing in the file is changed.

        Raises:
            OutputError: it can't be.
        """
        try:
            with suppress(FileNotFoundError):
                self._temporary.unlink()  # of a run that was killed
            self._cut()
        except OSError as exc:
            raise unwritable(self.name, exc) from exc

    def _cut(self) -> None:
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)

    def append(self, line: bytes, number: int) -> None:
        """See ``Output``."""
        try:
            write_all(self._fd, line)
        except OSError as exc:
            with suppress(OSError):  # then the next run does it
                self._cut()
            raise unwritable(self.name, exc) from exc
        self._size += len(line)
        self._mark(number)

    def close(self) -> None:
        """See ``Output``."""
        try:
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)
        except OSError as exc:
            raise unwritable(self.name, exc) from exc

    # ---- writing it again

    def drop_errors(self) -> None:
        """Take the rows that were answered by an error as not answered.

        Raises:
            OutputError: it can't be written; then nothing has changed.
        """

        def without_errors(write: Callable[[bytes], None]) -> None:
            for line in self._lines():
                read = read_written(line)
                if read is not None and not read[1]:
                    write(line)

        self._replace(without_errors)
        self._read()

    def sort(self) -> None:
        """Bring the lines into the order of the rows.

        Raises:
            OutputError: it can't be written; then nothing has changed.
        """
        offsets = array("Q", bytes(8 * len(self.answered)))
        offset = 0
        for line in self._lines():
            read = read_written(line)
            assert read is not None, "all lines were checked, or are ours"
            offsets[read[0].number - 1] = offset + 1
            offset += len(line)

        def in_order(write: Callable[[bytes], None]) -> None:
            with open(self._path, "rb") as file:
                for offset in filter(None, offsets):
                    file.seek(offset - 1)
                    write(file.readline())

        self._replace(in_order)
        self.is_sorted = True

    def _replace(self, fill: Callable[[Callable[[bytes], None]], None]) -> None:
        """A new file takes the place of this one, locked before anybody can find it."""
        try:
            fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
                with open(fd, "wb", buffering=_READ_BYTES, closefd=False) as file:
                    fill(_writer(file))
                os.fsync(fd)
                size = os.lseek(fd, 0, os.SEEK_END)
                os.replace(self._temporary, self._path)
            except BaseException:
                os.close(fd)
                with suppress(OSError):
                    self._temporary.unlink()
                raise
        except OSError as exc:
            raise unwritable(f"{self.name}, in a new order,", exc) from exc
        os.close(self._fd)
        self._fd, self._size = fd, size


def _writer(file: BinaryIO) -> Callable[[bytes], None]:
    def write(line: bytes) -> None:
        file.write(line)

    return write


def write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
