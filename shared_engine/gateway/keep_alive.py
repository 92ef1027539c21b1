"""``keep_alive``: how long a model stays after a request, as Ollama's clients say it. Pure."""

from __future__ import annotations

import math
import re
from typing import Any

from shared_engine.gateway.refusals import RefusedError

FIELD = "keep_alive"
HEADER = "x-keep-alive"
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?(?:(?:{_PART.pattern})+|0)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")
NEVER_S = 292 * 365 * 86400
"""What Ollama makes of "never leaves": as long as Go can count in nanoseconds. A longer time is never."""


def keep_alive_of(value: Any) -> float | None:
    """Seconds after the end of the last request; infinite for never, 0 for at once. None where nothing is said.

    Args:
        value: seconds, also as a text, or Go's form of a duration (``"5m"``, ``"1h30m"``); below 0: never.

    Raises:
        RefusedError: it is none of these.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return math.inf if value < 0 or value > NEVER_S else float(value)
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return keep_alive_of(float(text))
        if _DURATION.fullmatch(text):
            if text.startswith("-"):
                return math.inf
            return keep_alive_of(sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))
    raise RefusedError(
        400, f'{FIELD} = {value!r:.80}: give seconds, a text such as "5m", 0 (leave at once) or -1 (never)',
        "invalid_keep_alive",
    )  # fmt: skip
