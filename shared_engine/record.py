"""The record: what the supervisor says of its engine. One writer, any number of readers. Standard library only.

States and their transitions live here. Facts that change by the second (is it leased, is it idle) are not states.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any


class EngineState(str, Enum):
    """STOPPED, STANDBY and FAILED promise that no server process is left and its memory is back."""

    STOPPED = "stopped"  # nothing runs
    STARTING = "starting"  # vLLM is being imported, or the server loads the model
    READY = "ready"  # the server answers; may be leased
    STOPPING = "stopping"  # evicting; new leases wait
    STANDBY = "standby"  # the model is gone, the launcher keeps vLLM imported
    FAILED = "failed"  # the last start failed, or the server died; the next request starts it again


TRANSITIONS: dict[EngineState, frozenset[EngineState]] = {
    EngineState.STOPPED: frozenset({EngineState.STARTING}),
    EngineState.STARTING: frozenset({EngineState.READY, EngineState.FAILED, EngineState.STOPPING}),
    EngineState.READY: frozenset({EngineState.STOPPING, EngineState.FAILED}),
    EngineState.STOPPING: frozenset({EngineState.STANDBY, EngineState.STOPPED}),
    EngineState.STANDBY: frozenset({EngineState.STARTING, EngineState.STOPPED}),
    EngineState.FAILED: frozenset({EngineState.STARTING, EngineState.STOPPED}),
}


@dataclass(frozen=True)
class Failure:
    """Why the last start or run ended.

    Attributes:
        kind: ``start``, ``timeout``, ``not_installed`` or ``died``.
        message: what failed and what to do.
        log_tail: the engine's last log lines, oldest first.
    """

    kind: str
    message: str
    log_tail: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        return cls(kind=data["kind"], message=data["message"], log_tail=tuple(data["log_tail"]))


@dataclass(frozen=True)
class Record:
    """One engine at one moment. PIDs are hints: only kernel locks say who lives."""

    state: EngineState = EngineState.STOPPED
    model: str = ""
    vllm_version: str = ""
    generation: int = 0
    """Counts the starts of this engine; each has its own socket."""
    socket: str = ""
    supervisor_pid: int = 0
    launcher_pid: int = 0
    server_pid: int = 0
    """Also the server's process group and session."""
    boot_id: str = ""
    since: float = 0.0
    """When the state was entered, seconds since the epoch."""
    start_seconds: float | None = None
    """How long the last start took."""
    failure: Failure | None = None

    def entered(self, state: EngineState, **changes: Any) -> Record:
        """This record in another state.

        Raises:
            ValueError: the transition is not in TRANSITIONS, which is a mistake in the supervisor.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"no transition {self.state.value} -> {state.value}")
        return replace(self, state=state, **changes)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "state": self.state.value})


def boot_id() -> str:
    """Names this boot of the machine; a record of another boot speaks of processes that are gone."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_record(path: Path, record: Record) -> None:
    """Replace the record as a whole: a reader sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(record.to_json())
    os.replace(temporary, path)


def read_record(path: Path) -> Record | None:
    """The record, or None if there is none that can be read (never written, or cut off by a full disk)."""
    try:
        data = json.loads(path.read_text())
        known = {name: data[name] for name in Record.__dataclass_fields__ if name in data}
        failure = known.get("failure")
        known["failure"] = None if failure is None else Failure.from_json(failure)
        known["state"] = EngineState(known["state"])
        return Record(**known)
    except (OSError, ValueError, KeyError, TypeError):
        return None
