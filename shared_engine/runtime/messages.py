"""The messages on an engine's control socket: typed requests and replies, one JSON object a line.

request          reply
EnsureReady      StartProgress while a start is under way, then Ready or StartFailed
WhatBecameOf     Outcome, as soon as it is known
Keep             Kept
Evict            Gone when the server's processes are gone; Refused while requests are in flight
MakeRoom         as Evict, for another engine's sake; Refused also where this one must stay
Shutdown         as Evict, and launcher and supervisor exit as well
anything else    NotUnderstood: the caller is of another release
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import Failure
from shared_engine.runtime.typed_json import parse, typed

# ---- requests


@dataclass(frozen=True)
class EnsureReady:
    """Start the engine, or wake it, if it is not ready; keep it as ``policy`` says.

    Attributes:
        environment: of the caller, for a launcher that has to be started.
    """

    policy: KeepPolicy
    environment: Mapping[str, str] = field(repr=False)  # it may hold secrets


@dataclass(frozen=True)
class WhatBecameOf:
    """Asked after a request lost its connection: has the server of this start ended, and how?"""

    start_number: int


@dataclass(frozen=True)
class Keep:
    """Keep the engine so from now on, whatever its callers have wished, until its next start or a caller's longer wish.

    Attributes:
        idle_ttl_s, pinned: as in KeepPolicy; None for what stays as it is.
    """

    idle_ttl_s: float | None = None
    pinned: bool | None = None


@dataclass(frozen=True)
class Evict:
    """Take the model out of memory."""


@dataclass(frozen=True)
class MakeRoom:
    """Take the model out of memory, because another engine needs the device."""


@dataclass(frozen=True)
class Shutdown:
    """Leave no process behind. With ``force`` requests in flight fail."""

    force: bool = False


Request = EnsureReady | WhatBecameOf | Keep | Evict | MakeRoom | Shutdown

# ---- replies


@dataclass(frozen=True)
class StartProgress:
    """How far the start is. The reply comes later."""

    progress: Progress


@dataclass(frozen=True)
class Ready:
    """The engine may be leased. Where it listens stands in the record: read it while holding the lease."""

    supervisor_pid: int
    start_number: int


@dataclass(frozen=True)
class StartFailed:
    """
    Attributes:
        retry_in_s: above 0 where this is the last start's failure, and the next start has to wait so long.
    """

    failure: Failure
    retry_in_s: float = 0.0


class Fate(str, Enum):
    """What became of the server of one start."""

    RUNNING = "running"  # as far as its supervisor knows after a moment
    DIED = "died"  # it ended by itself, or hung
    STOPPED = "stopped"  # somebody evicted it or shut it down
    REPLACED = "replaced"  # there has been another start, or another supervisor, since


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        failure: how it died; None for every other fate.
    """

    fate: Fate
    failure: Failure | None = None


@dataclass(frozen=True)
class Kept:
    """From now on."""


@dataclass(frozen=True)
class Gone:
    """What was asked to end has ended."""


class Refusal(str, Enum):
    """Why an engine stays."""

    BUSY = "busy"  # requests are in flight
    PINNED = "pinned"  # its users want it kept, whoever needs room


@dataclass(frozen=True)
class Refused:
    refusal: Refusal


@dataclass(frozen=True)
class NotUnderstood:
    """The request is not one that this release knows."""


Reply = StartProgress | Ready | StartFailed | Outcome | Kept | Gone | Refused | NotUnderstood

LAST_REPLIES: dict[type[Request], tuple[type[Reply], ...]] = {
    EnsureReady: (Ready, StartFailed),
    WhatBecameOf: (Outcome,),
    Keep: (Kept,),
    Evict: (Gone, Refused),
    MakeRoom: (Gone, Refused),
    Shutdown: (Gone, Refused),
}
"""Those that end the wait for a request."""

# ---- the line


class ProtocolError(ValueError):
    """A line that is no message of this release."""


_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        EnsureReady, WhatBecameOf, Keep, Evict, MakeRoom, Shutdown,
        StartProgress, Ready, StartFailed, Outcome, Kept, Gone, Refused, NotUnderstood,
    )
}  # fmt: skip


def encode(message: Request | Reply) -> bytes:
    """The message as a line."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message in a line.

    Raises:
        ProtocolError: it holds none.
    """
    try:
        fields = parse(line)
        return typed(_TYPES[fields.pop("type", None)], fields)
    except (ValueError, KeyError, TypeError) as exc:
        raise ProtocolError(f"not a message of this release: {line[:200]!r}") from exc
