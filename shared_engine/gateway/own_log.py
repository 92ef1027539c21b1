"""The last lines of the gateway's own log, for who asks over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from shared_engine.logs import TREE, Listener
from shared_engine.runtime.redacted import redacted

OWN_LINES = 1000
POLL_S = 0.25


class OwnLog(Listener):
    """The last lines of this process's log, while it is heard."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[dict[str, Any]] = deque(maxlen=OWN_LINES)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = redacted(record.getMessage())
        except Exception:  # as of every handler: whoever logs is not to fail for it
            self.handleError(record)
            return
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        line = {"time": when, "level": record.levelname, "source": "gateway", "process": None, "message": message}
        self._lines.append(line)
        self._count += 1

    def last(self, count: int) -> list[dict[str, Any]]:
        return list(self._lines)[-count:] if count else []

    async def follow(self, count: int) -> AsyncIterator[dict[str, Any]]:
        """The last ones, and each that comes."""
        shown = self._count - len(self.last(count))
        while True:
            for line in self.last(min(self._count - shown, OWN_LINES)):
                yield line
            shown = self._count
            await asyncio.sleep(POLL_S)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Meanwhile our loggers write to it too."""
        logger = logging.getLogger(TREE)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
