"""From which level on the parts of vllm-local log: the app's loggers, the supervisor, the launcher."""

from __future__ import annotations

import logging
from collections.abc import Mapping

LEVEL_VARIABLE, FORMAT_VARIABLE = "VLLM_LOCAL_LOG_LEVEL", "VLLM_LOCAL_LOG_FORMAT"


def level_of(text: str) -> int | None:
    """The level of a name (in any case; ``WARN`` too) or a number; None where it is neither."""
    if text.isdecimal():
        return int(text) or None
    level = logging.getLevelName(text.strip().upper())  # vLLM's Python may be too old for getLevelNamesMapping
    return level if isinstance(level, int) and level else None  # NOTSET is not a wish


def level_variable(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable as it is, for a process of ours that is started with another environment."""
    return {LEVEL_VARIABLE: environment[LEVEL_VARIABLE]} if LEVEL_VARIABLE in environment else {}


def chosen_level(environment: Mapping[str, str]) -> int | None:
    """What VLLM_LOCAL_LOG_LEVEL asks for; None where it is not set, or not a level."""
    return level_of(environment.get(LEVEL_VARIABLE, ""))
