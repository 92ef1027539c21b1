"""Logging of an app that uses this package: one tree of loggers, ``shared_engine``; JSON lines for who wants them.

A library changes nothing of an app's logging by itself: ``setup`` does, and VLLM_LOCAL_LOG_LEVEL and
VLLM_LOCAL_LOG_FORMAT do the same, read on import. ``shared_engine.vllm``, ``.supervisor`` and ``.launcher`` carry an
engine's own log (``verbose=True``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from shared_engine.errors import InvalidInputError
from shared_engine.runtime.log_level import FORMAT_VARIABLE, LEVEL_VARIABLE, level_of

TREE = "shared_engine"
FORMATS = ("text", "json")
_TEXT = "%(levelname)s %(asctime)s %(name)s: %(message)s"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception``, and a record's extras.

    Lines of an engine's log have the extras ``engine`` (the model's name) and ``engine_process``.
    """

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = time.gmtime(record.created), int(record.created % 1 * 1000)
        told: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{milliseconds:03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = record.stack_info
        extras = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps({**extras, **told}, default=str, ensure_ascii=False)


class Listener(logging.Handler):
    """One that hears our lines beside whoever writes them: the app has not chosen it as their place."""


class _LastResort(logging.Handler):
    """Writes to stderr what no other handler would get, as Python does; but of any level, and in this format."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if stream is None or self._is_heard_elsewhere(record.name):
            return
        try:
            stream.write(f"{self.format(record)}\n")
            stream.flush()
        except Exception:
            self.handleError(record)

    def _is_heard_elsewhere(self, name: str) -> bool:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(not isinstance(handler, Listener | _LastResort) for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


_last_resort = _LastResort()


def setup(level: int | str | None = None, format: Literal["text", "json"] | None = None) -> None:
    """For programs that configure no logging: lines of ``level`` and above go to stderr, in this format.

    Where the app has handlers, at once or later, they get the lines, and nothing is written here; give such a handler
    a JsonFormatter for JSON. May be called again.

    Args:
        level: a number or a name. Default: VLLM_LOCAL_LOG_LEVEL, or INFO.
        format: ``text`` or ``json``. Default: VLLM_LOCAL_LOG_FORMAT, or text.

    Raises:
        InvalidInputError: there is no such level or format.
    """
    chosen = level if level is not None else os.environ.get(LEVEL_VARIABLE) or logging.INFO
    number = level_of(str(chosen))
    if number is None or isinstance(chosen, bool):
        raise InvalidInputError(
            f"level = {chosen!r}: must be a number, or one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
        )
    form = format or os.environ.get(FORMAT_VARIABLE) or "text"
    if form not in FORMATS:
        raise InvalidInputError(f"format = {form!r}: must be text or json")
    logging.getLogger(TREE).setLevel(number)
    write_what_nobody_hears(form)


def write_what_nobody_hears(format: str | None = None) -> None:
    """To stderr, in this format; None: in that of the time before, or text."""
    if format is not None or _last_resort.formatter is None:
        _last_resort.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_TEXT))
    logging.getLogger(TREE).addHandler(_last_resort)


def setup_by_environment(environment: Mapping[str, str]) -> None:
    """What the two variables ask for, where they are set. What they ask for in vain is told, and ignored."""
    level, format = environment.get(LEVEL_VARIABLE), environment.get(FORMAT_VARIABLE)
    number = level_of(level or "")
    if level and number is None:
        logging.getLogger(TREE).warning(
            "%s = %r is ignored: it must be a number, or one of DEBUG, INFO, WARNING, ERROR, CRITICAL",
            LEVEL_VARIABLE,
            level,
        )
    if format and format not in FORMATS:
        logging.getLogger(TREE).warning("%s = %r is ignored: it must be text or json", FORMAT_VARIABLE, format)
    if number is not None:
        logging.getLogger(TREE).setLevel(number)
    if number is not None or format in FORMATS:
        write_what_nobody_hears(format if format in FORMATS else "text")
