"""Lines of an engine's log, with the level and the source that each says of itself. Needs no packages."""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass

from shared_engine.observe.log_reader import printable

VLLM = "vllm"
MAX_LINE = 16_384
_LEVELS = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_PROCESS = r"(?:\((?P<process>[^()\s]+ pid=\d+)\) ?)?"
_OURS = re.compile(
    rf"(?:(?P<time>\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d) )?{_LEVELS} vllm-local (?P<source>\w+): (?P<text>.*)"
)
# vLLM's own, and what else in its processes writes such lines: uvicorn ("INFO:     Started").
_THEIRS = re.compile(
    rf"{_PROCESS}{_LEVELS}(?::\s+|\s+(?:(?P<time>\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,]\d+)? )?)(?P<text>.*)"
)
_WITHOUT = re.compile(rf"{_PROCESS}(?P<text>.*)")
# PyTorch's C++, and NCCL.
_GLOG = re.compile(r"(?:\[rank\d+\]:)?\[?(?P<level>[DIWEF])\d{4} \d\d:\d\d:\d\d")
_GLOG_LEVELS = {
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
_WARNING = re.compile(r"\S*:\d+: \w*Warning: |.*\bNCCL WARN\b|[Ww]arning: ")
_TRACEBACK = "Traceback (most recent call last):"
_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")
_EXCEPTION = re.compile(r"[\w.]+(?:Error|Exception|Interrupt|Exit)\b")


def this_process() -> str:
    """How lines are marked that this process has written into an engine's log, and logs itself."""
    return f"App pid={os.getpid()}"


@dataclass(frozen=True)
class LogLine:
    """One line.

    Attributes:
        text: without its level and time, and without control characters.
        level: of the module ``logging``.
        source: ``vllm``, or the part of vllm-local that wrote it: ``supervisor``, ``launcher``.
        process: of vLLM, such as ``EngineCore pid=71``; empty where the line does not say.
        time: when it was written, as ``2026-11-29T03:36:23`` of this machine's clock; None where it does not say.
    """

    text: str
    level: int = logging.INFO
    source: str = VLLM
    process: str = ""
    time: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return {
            "time": self.time,
            "level": logging.getLevelName(self.level),
            "source": self.source,
            "process": self.process or None,
            "message": self.text,
        }

    def __str__(self) -> str:
        return f"({self.process}) {self.text}" if self.process else self.text


class LineReader:
    """Makes lines of a log's text, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._pending = ""
        self._is_cut = False
        self._in_traceback: set[str] = set()

    def feed(self, text: str) -> list[LogLine]:
        """The lines that are whole by now, without empty ones."""
        *lines, pending = (self._pending + text).split("\n")
        pending = _last_state(pending)
        found = [line for line in map(self._line, lines) if line is not None]
        if len(pending) > MAX_LINE:  # a line without end must not grow without end: its beginning has to do
            cut = None if self._is_cut else self._line(f"{pending[:MAX_LINE]} ...")
            found += [] if cut is None else [cut]
            self._is_cut, pending = True, ""
        self._pending = pending
        return found

    def end(self) -> list[LogLine]:
        """What has not come to its end."""
        return self.feed("\n") if self._pending else []

    def _line(self, line: str) -> LogLine | None:
        if self._is_cut:  # the rest of one that was too long
            self._is_cut = False
            return None
        # Of a progress bar what a terminal would show in the end.
        text = printable(_last_state(line.rstrip("\r"))).rstrip()
        if len(text) > MAX_LINE:
            text = f"{text[:MAX_LINE]} ..."
        parsed = self._parsed(text)
        return parsed if parsed.text.strip() else None

    def _parsed(self, text: str) -> LogLine:
        if (found := _OURS.fullmatch(text)) is not None:
            at = found["time"].replace(" ", "T") if found["time"] else None
            return LogLine(found["text"], _level(found["level"]), found["source"], time=at)
        if (found := _THEIRS.fullmatch(text)) is not None:
            process = found["process"] or ""
            self._in_traceback.discard(process)
            return LogLine(found["text"], _level(found["level"]), VLLM, process, _with_year(found["time"]))
        found = _WITHOUT.fullmatch(text)
        assert found is not None
        process, rest = found["process"] or "", found["text"]
        return LogLine(rest, self._level_without(process, rest), VLLM, process)

    def _level_without(self, process: str, text: str) -> int:
        """Of a line that says none."""
        if text.startswith(_TRACEBACK):
            self._in_traceback.add(process)
        is_in_traceback = process in self._in_traceback
        if is_in_traceback and not text.startswith((" ", _TRACEBACK)):
            self._in_traceback.discard(process)  # the exception, which ends it
        if is_in_traceback or text.startswith(_BETWEEN):
            return logging.ERROR
        if (found := _GLOG.match(text)) is not None:
            return _GLOG_LEVELS[found["level"]]
        if _WARNING.match(text):
            return logging.WARNING
        return logging.ERROR if _EXCEPTION.match(text) else logging.INFO


def _last_state(text: str) -> str:
    """Of a progress bar, which ends each of its states with a carriage return."""
    end = "\r" if text.endswith("\r") else ""  # perhaps the first half of a line's end
    return text.removesuffix("\r").rpartition("\r")[2] + end


def _level(name: str) -> int:
    level = logging.getLevelName(name)
    assert isinstance(level, int)
    return level


def _with_year(day: str | None) -> str | None:
    """vLLM writes month and day."""
    if day is None:
        return None
    now = time.localtime()
    is_of_last_year = day[:5] > time.strftime("%m-%d", now)
    return f"{now.tm_year - is_of_last_year}-{day.replace(' ', 'T')}"
