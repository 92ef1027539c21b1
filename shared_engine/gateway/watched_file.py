"""A file that is looked at from time to time: whether it is another one, or has other content."""

from __future__ import annotations

from pathlib import Path


class WatchedFile:
    """Make it before the file is read: no change after that is missed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._mark()

    def has_changed(self) -> bool:
        """Since this was last asked, or was made. One that is gone has not: editors remove a file for a moment."""
        now = self._mark()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
