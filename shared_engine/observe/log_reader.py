"""An engine's log: its last lines, what comes after them, and text without control characters. Needs no packages."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator
from io import FileIO
from pathlib import Path

FOLLOW_POLL_S = 0.1
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    r"|\x1b[@-Z\\-_]?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)


class FollowedLog:
    """What is written to a log from now on: across rotations, and from a file that is not there yet.

    Args:
        from_start: also what is in it already.

    Raises:
        OSError: it can't be read; ``read`` may raise it too, and can be called again.
    """

    def __init__(self, log: Path, *, from_start: bool = False) -> None:
        self._log = log
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._file = _open(log)
        if self._file is not None and not from_start:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> str:
        """What came since the last time; empty if nothing did."""
        if self._file is None:
            self._file = _open(self._log)
        while self._file is not None:
            # Look before reading: what came before the rotation is then read before the next file is opened.
            is_old = _is_another(self._file, self._log)
            data = self._file.read()
            if data or not is_old:
                return self._decoder.decode(data or b"")
            self.close()
            self._file = _open(self._log)
        return ""

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def read_log(log: Path, count: int, *, follow: bool = False) -> Generator[str, None, None]:
    """The last ``count`` lines; with ``follow`` also what is written from then on, for ever.

    Reaches back into the file before a rotation, goes on across rotations, and waits for a file that is not there yet.
    """
    with contextlib.closing(FollowedLog(log, from_start=True)) as followed:
        yield _last_lines(log, followed.read(), count)
        while follow:
            text = followed.read()
            if text:
                yield text
            else:
                time.sleep(FOLLOW_POLL_S)


def _last_lines(log: Path, text: str, count: int) -> str:
    if text.count("\n") < count:
        with contextlib.suppress(FileNotFoundError):
            text = log.with_name(log.name + ".1").read_bytes().decode(errors="replace") + text
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    return "".join(lines[-count:] if count else ())


def _open(log: Path) -> FileIO | None:
    try:
        return FileIO(log)  # without a buffer, which would have a lock: a forked child must be able to close it
    except FileNotFoundError:
        return None


def _is_another(file: FileIO, log: Path) -> bool:
    """True when the log's name stands for another file by now, or for the same one cut short."""
    try:
        status = log.stat()
    except FileNotFoundError:
        return False  # between the rotation and the next line
    return status.st_ino != os.fstat(file.fileno()).st_ino or status.st_size < file.tell()


def plain_text(texts: Iterable[str]) -> Iterator[str]:
    """Whole lines without control characters: a sequence may come in two pieces."""
    pending = ""
    for text in texts:
        whole, newline, pending = (pending + text).rpartition("\n")
        yield printable(whole + newline)
    yield printable(pending)


def printable(text: str) -> str:
    """Without colours and other control characters; a progress bar's carriage returns become lines."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
