"""The messages between supervisor and launcher. Imported by both; the launcher runs in vLLM's Python, so the standard
library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

# ---- commands


@dataclass(frozen=True)
class StartServer:
    """Fork a server with these arguments; answered by Started."""

    argv: tuple[str, ...]


@dataclass(frozen=True)
class Exit:
    """End the server, if there is one, and exit."""


Command = StartServer | Exit


def write_command(command: Command) -> bytes:
    """As a line."""
    if isinstance(command, StartServer):
        return _line({"op": "start", "argv": list(command.argv)})
    return _line({"op": "exit"})


def read_command(line: bytes) -> Command:
    """What ``write_command`` wrote."""
    fields = json.loads(line)
    return StartServer(tuple(fields["argv"])) if fields["op"] == "start" else Exit()


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
_NAMES = {kind: name for name, kind in EVENTS.items()}


def write_event(event: Event) -> bytes:
    """As a line."""
    return _line({"event": _NAMES[type(event)], **asdict(event)})


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


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


# ---- lines in the log, where the processes that vLLM starts have no other way to say it


@dataclass(frozen=True)
class ChildEnded:
    """A process that vLLM has started, and collected.

    Attributes:
        name: as vLLM calls it.
        returncode: minus the number of the signal, where one has ended it.
    """

    name: str
    pid: int
    returncode: int


_CHILD_ENDED = re.compile(r"vllm-local: (\S+), process (\d{1,10}), has ended: (-?\d{1,5})$")


def child_ended_line(ended: ChildEnded) -> bytes:
    """For the log."""
    name = "-".join(ended.name.split())
    return f"vllm-local: {name}, process {ended.pid}, has ended: {ended.returncode}\n".encode()


def read_child_ended(line: str) -> ChildEnded | None:
    """What ``child_ended_line`` wrote; None for any other line."""
    found = _CHILD_ENDED.search(line)
    return None if found is None else ChildEnded(found[1], int(found[2]), int(found[3]))
