"""Files that processes of one user share: written as a whole, read with suspicion, removed without complaint."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old text or the new one.

    Raises:
        OSError: it can't be written; the old one stays.
    """
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # moved, or never made
            temporary.unlink()


MAX_BYTES = 1 << 24


def read_own(path: Path) -> bytes:
    """What is in a file that this user has written.

    Raises:
        OSError: there is none; or it is a link, no file, another user's, or of absurd size, so that it is not ours.
    """
    # A named pipe would have us wait for whoever writes to it.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_size > MAX_BYTES:
            raise PermissionError(f"{path} is not a file that vllm-local has written")
        return file.read(MAX_BYTES)


def remove_files(paths: Iterable[str]) -> None:
    """Remove those that are there."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
