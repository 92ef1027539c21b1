"""The messages between supervisor and launcher, on the supervisor's side.

The launcher runs in vLLM's Python and can't import this: it has the same names in launcher.py, and a test compares
the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# ---- commands


def start_command(argv: Sequence[str]) -> bytes:
    """Fork a server with these arguments; answered by Started."""
    return _line({"op": "start", "argv": list(argv)})


def exit_command() -> bytes:
    """End the server, if there is one, and exit."""
    return _line({"op": "exit"})


def _line(command: dict[str, Any]) -> bytes:
    return json.dumps(command).encode() + b"\n"


# ---- events


@dataclass(frozen=True)
class Preloaded:
    """vLLM is imported: servers can be forked.

    Attributes:
        fork_refusal: why the server's own processes are not forked; None where they are.
        seconds: how long the import took.
    """

    version: str
    fork_refusal: str | None
    seconds: float


@dataclass(frozen=True)
class ImportFailed:
    """vLLM can't be imported; the launcher exits."""

    error: str


@dataclass(frozen=True)
class Started:
    """The server is forked, and leads a process group of its own."""

    pid: int


@dataclass(frozen=True)
class Exited:
    """The server's first process has ended."""

    pid: int
    returncode: int


Event = Preloaded | ImportFailed | Started | Exited

EVENTS: dict[str, type[Event]] = {
    "preloaded": Preloaded,
    "import_failed": ImportFailed,
    "started": Started,
    "exited": Exited,
}
"""By the name that the launcher emits."""


def read_event(line: bytes | str) -> Event | None:
    """The event in a line. None for one that this release does not know, and without fields that it does not know.

    The launcher is run from disk, where a supervisor that outlives an upgrade finds a newer one.

    Raises:
        ValueError: the event lacks a field.
    """
    fields = json.loads(line)
    kind = EVENTS.get(fields.get("event"))
    if kind is None:
        return None
    try:
        return kind(**{name: fields[name] for name in kind.__dataclass_fields__})
    except KeyError as exc:
        raise ValueError(f"the launcher's event lacks {exc}: {line!r}") from exc
