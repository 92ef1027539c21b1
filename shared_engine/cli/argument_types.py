"""Kinds of arguments: each reads a word of the command line, or says what it must be."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any


def seconds(text: str, least: float = 0.0) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds, {least:g} or more, got {text!r}")


def count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """Without this, the system's resolver would take 99999 for 34463."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535, got {text!r}")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise argparse.ArgumentTypeError('must be a JSON object such as {"name": "value"}')  # it may hold secrets
