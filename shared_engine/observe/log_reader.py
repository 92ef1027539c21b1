"""An engine's log: its last lines, what comes after them, and text without control characters. Needs no packages."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

FOLLOW_POLL_S = 0.1
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    r"|\x1b[@-Z\\-_]?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)


def read_log(log: Path, count: int, *, follow: bool = False) -> Generator[str, None, None]:
    """The last ``count`` lines; with ``follow`` also what is written from then on, for ever.

    Reaches back into the file before a rotation, goes on across rotations, and waits for a file that is not there yet.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    file = _open(log)
    try:
        yield _last_lines(log, "" if file is None else decoder.decode(file.read()), count)
        while follow:
            if file is None:
                file = _open(log)
            # Look before reading: what came before the rotation is then read before the next file is opened.
            is_old = file is not None and _is_another(file, log)
            data = b"" if file is None else file.read()
            if data:
                yield decoder.decode(data)
            elif is_old and file is not None:
                file.close()
                file = None
            else:
                time.sleep(FOLLOW_POLL_S)
    finally:
        if file is not None:
            file.close()


def _last_lines(log: Path, text: str, count: int) -> str:
    if text.count("\n") < count:
        with contextlib.suppress(FileNotFoundError):
            text = log.with_name(log.name + ".1").read_bytes().decode(errors="replace") + text
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    return "".join(lines[-count:] if count else ())


def _open(log: Path) -> BinaryIO | None:
    try:
        return open(log, "rb")
    except FileNotFoundError:
        return None


def _is_another(file: BinaryIO, log: Path) -> bool:
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
