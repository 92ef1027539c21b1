"""vLLM's own log in this process's log (``verbose=True``): each line once, with its level, while somebody wants it.

One thread for each engine, whatever number of objects ask. It reads the engine's log file, so that requests do not wait
for it, and other processes have no part in it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from shared_engine.errors import EngineError
from shared_engine.logs import TREE, write_what_nobody_hears
from shared_engine.observe.log_lines import LineReader, LogLine, this_process
from shared_engine.observe.log_reader import FollowedLog
from shared_engine.request.threads import start_thread
from shared_engine.runtime.redacted import redacted

POLL_S, MAX_POLL_S = 0.1, 0.5
LAST_LINES_S = 2.0


class LogForwarder:
    """Forwards what is written to an engine's log from now on, until nobody is left who wants it.

    Raises:
        EngineError: no thread can be started.
    """

    def __init__(self, log: Path, engine: str, wanted_by: object) -> None:
        self._log = FollowedLog(log)
        self._extra = {"engine": engine}
        self._lines = LineReader()
        self._wake = threading.Event()
        self.wanted_by: weakref.WeakSet[object] = weakref.WeakSet([wanted_by])
        try:
            self._start()
        except EngineError:
            self.close()
            raise

    def _start(self) -> None:
        self.thread = start_thread(self._run, "vllm-local-log", "the engine's log")

    def _run(self) -> None:
        wait_s = POLL_S
        while True:
            rest = None if self.wanted_by else _forget(self)
            if rest is not None:
                break
            found = self._lines.feed(self.read())
            self._forward(found)
            wait_s = POLL_S if found else min(2 * wait_s, MAX_POLL_S)
            self._wake.wait(wait_s)
            self._wake.clear()
        self._forward([*self._lines.feed(rest), *self._lines.end()])
        self.close()

    def read(self) -> str:
        try:
            return self._log.read()
        except OSError:  # no file is left to the app: later
            return ""

    def _forward(self, lines: list[LogLine]) -> None:
        for line in lines:
            logger = logging.getLogger(f"{TREE}.{line.source}")
            if not _is_shown(logger, line.level) or (line.process == this_process() and logging.root.handlers):
                continue
            extra = {**self._extra, **({"engine_process": line.process} if line.process else {})}
            record = logger.makeRecord(logger.name, line.level, "", 0, "%s", (redacted(str(line)),), None, extra=extra)
            with contextlib.suppress(Exception):  # of a filter of the app's: the lines after this one come all the same
                _hand_over(logger, record)

    def look(self) -> None:
        """Look at once whether it is still wanted."""
        self._wake.set()

    def join(self) -> None:
        """Return when all is forwarded, or after LAST_LINES_S seconds."""
        if self.thread is not threading.current_thread():
            self.thread.join(LAST_LINES_S)

    def close(self) -> None:
        self._log.close()


_guard = threading.Lock()
_forwarders: dict[Path, LogForwarder] = {}


def forward_log(log: Path, engine: str, wanted_by: object) -> None:
    """Forward the log from now on, until ``stop_forwarding``, or until ``wanted_by`` is no more.

    Args:
        engine: the model's name, for the records.
    """
    forwarder = _forwarders.get(log)
    if forwarder is not None and wanted_by in forwarder.wanted_by:
        return
    write_what_nobody_hears()
    with _guard, contextlib.suppress(EngineError, OSError):  # no thread, no file: requests have to do without
        if log in _forwarders:
            _forwarders[log].wanted_by.add(wanted_by)
        else:
            _forwarders[log] = LogForwarder(log, engine, wanted_by)


def stop_forwarding(log: Path, wanted_by: object) -> None:
    """Return when all that was written until now is forwarded, and, if nobody else wants it, the thread has ended."""
    with _guard:
        forwarder = _forwarders.get(log)
        if forwarder is None:
            return
        forwarder.wanted_by.discard(wanted_by)
        is_over = not forwarder.wanted_by
    forwarder.look()
    if is_over:
        forwarder.join()


def _forget(forwarder: LogForwarder) -> str | None:
    """What was written until now, after which the next forwarder begins; None when somebody wants it again."""
    with _guard:
        if forwarder.wanted_by:
            return None
        for log in [log for log, each in _forwarders.items() if each is forwarder]:
            del _forwarders[log]
        return forwarder.read()


def _is_shown(logger: logging.Logger, level: int) -> bool:
    """All that vLLM logs is, unless the app has chosen a level for our loggers: the root's is not meant for it."""
    is_chosen = logger.level or logging.getLogger(TREE).level
    return level > logging.root.manager.disable and (not is_chosen or level >= logger.getEffectiveLevel())


def _hand_over(logger: logging.Logger, record: logging.LogRecord) -> None:
    """As ``handle``; but also where the app's dictConfig has silenced all loggers that it did not know: this log was
    asked for."""
    passed: Any = logger.filter(record)
    if passed:
        logger.callHandlers(passed if isinstance(passed, logging.LogRecord) else record)


@atexit.register
def _forward_the_last_lines() -> None:
    forwarders = list(_forwarders.values())
    for forwarder in forwarders:
        forwarder.wanted_by.clear()
        forwarder.look()
    for forwarder in forwarders:
        forwarder.join()


def _forget_in_child() -> None:
    """A forked child has no such thread; it forwards from its own next request on."""
    global _guard
    _guard = threading.Lock()
    for forwarder in _forwarders.values():
        forwarder.close()
    _forwarders.clear()


os.register_at_fork(after_in_child=_forget_in_child)
