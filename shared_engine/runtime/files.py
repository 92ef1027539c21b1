"""Files that other processes read: written as a whole, removed without complaint."""

from __future__ import annotations

import contextlib
import os
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


def remove_files(paths: Iterable[str]) -> None:
    """Remove those that are there."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
