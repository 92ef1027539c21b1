"""Lines of the launcher's own, on stderr, in the one log that it has with vLLM."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping

from shared_engine.runtime.log_level import LEVEL_VARIABLE, chosen_level

LAUNCHER = "vllm-local launcher"
_level = logging.INFO


def take_level(environment: MutableMapping[str, str]) -> None:
    """Log from the level on that VLLM_LOCAL_LOG_LEVEL says, and take the variable out: vLLM warns of names with its own
    prefix that it does not know."""
    global _level
    _level = chosen_level(environment) or logging.INFO
    environment.pop(LEVEL_VARIABLE, None)


def say(text: str, level: int) -> None:
    """Write a line, if lines of its level are wanted."""
    if level >= _level:
        sys.stderr.write(f"{logging.getLevelName(level)} {LAUNCHER}: {text}\n")
