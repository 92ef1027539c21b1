"""EngineInfo: one engine as it is now, for ``Engine.status()``, ``vllm-local status`` and whoever else looks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shared_engine.machine.hub_cache import called
from shared_engine.observe.processes import ProcessNode
from shared_engine.runtime.life_stats import LifeStats, lives_together
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import EngineState

KEY_DIGITS = 8
RECENT_FAILURE_S = 3600.0
"""How long after it failed an engine that nobody owns any more is still worth a line."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """One engine at one moment. None is what is not known or does not apply; asking starts nothing.

    Attributes:
        state: of a remote engine READY or FAILED, by its ``/health``.
        mode: ``local``, ``direct`` (under this process), or ``remote``.
        model: a folder or a hub id; None for a remote engine that was not asked yet.
        base_url: of a remote engine; None for others, which have what follows, a direct one no supervisor and socket.
        key: names the engine's runtime directory.
        is_alive: a supervisor owns it, or, of a direct one, it is started or starts.
        state_since: when the state was entered, seconds since the epoch.
        progress: how far a start or a wake has come; None while none is under way.
        starts: how often it was started.
        start_s: how long the last start took, in seconds.
        max_model_len: longest prompt and answer together, in tokens, as the server of the last start says itself.
        idle_for_s: seconds since the last request ended; None while requests run, and where nothing is loaded.
        last_used: seconds since the epoch.
        lease_holders: PIDs of the processes that have requests in flight.
        devices: ``cpu``, or ``cuda:0``, ...
        pinned: never evicted to make room for another engine.
        idle_ttl_s: seconds from the end of the last request until the model leaves memory; infinite for never.
        leaves_at: when that will be if nobody asks until then, in seconds since the epoch; None also while requests
            run, and where nothing is loaded.
        last_error: why the last start or run failed; None once a start has gone well.
        socket: where the server listens.
        urls: where it listens for other programs, by ``serve_tcp``, such as ``http://127.0.0.1:8000/v1``.
        processes: the supervisor and all below it; None where nobody looked (``status(processes=True)`` does).
        leftovers: files that a supervisor left behind when it was killed.
        member: of a server of a fleet its URL; of a replica its devices, such as ``cuda:2,3`` or ``cpu:0-3``.
        in_flight: requests that this process has there now; of a server of a fleet, or a replica.
        members: of a fleet, each server; of replicas each engine.
        life: what its starts and ends have come to since the machine was booted.
    """

    state: EngineState
    mode: str = "local"
    model: str | None = None
    base_url: str | None = None
    key: str | None = None
    is_alive: bool = False
    state_since: float | None = None
    progress: Progress | None = None
    starts: int = 0
    start_s: float | None = None
    max_model_len: int | None = None
    idle_for_s: float | None = None
    last_used: float | None = None
    lease_holders: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    pinned: bool = False
    idle_ttl_s: float | None = None
    leaves_at: float | None = None
    last_error: str | None = None
    supervisor_pid: int | None = None
    server_pid: int | None = None
    socket: str | None = None
    urls: tuple[str, ...] = ()
    log_file: str | None = None
    vllm_version: str | None = None
    processes: ProcessNode | None = None
    leftovers: tuple[str, ...] = ()
    member: str | None = None
    in_flight: int | None = None
    members: tuple[EngineInfo, ...] = ()
    life: LifeStats = field(default_factory=LifeStats)

    @property
    def name(self) -> str:
        """What people know the model by."""
        return called(self.model or "") or self.key or self.base_url or "?"

    @property
    def short_key(self) -> str:
        """Enough of the key for people."""
        return (self.key or "")[:KEY_DIGITS]

    @property
    def leases(self) -> int:
        """How many processes have requests in flight."""
        return len(self.lease_holders)

    @property
    def memory_bytes(self) -> int | None:
        """RAM of all processes together."""
        return _sum(process.memory_bytes for process in self._everyone())

    @property
    def gpu_memory_bytes(self) -> int | None:
        """Memory of all processes together, on all GPUs."""
        return _sum(process.gpu_memory_bytes for process in self._everyone())

    @property
    def is_worth_a_line(self) -> bool:
        """Alive, or failed a short time ago."""
        has_failed = self.last_error is not None and self.state_since is not None
        return self.is_alive or (has_failed and time.time() - (self.state_since or 0.0) < RECENT_FAILURE_S)

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types, under stable names: those of the attributes, and a few derived ones."""
        return {
            **asdict(self),
            "state": self.state.value,
            "progress": None if self.progress is None else str(self.progress),
            "start_phase": None if self.progress is None else self.progress.phase.value,
            "idle_for_s": None if self.idle_for_s is None else round(self.idle_for_s, 1),
            "idle_ttl_s": None if self.idle_ttl_s == math.inf else self.idle_ttl_s,
            "leases": self.leases,
            "memory_bytes": self.memory_bytes,
            "gpu_memory_bytes": self.gpu_memory_bytes,
        }

    def _everyone(self) -> Iterator[ProcessNode]:
        if self.processes is not None:
            yield from self.processes.walk()
        for member in self.members:
            yield from member._everyone()


_BY_USE = (
    EngineState.READY, EngineState.STARTING, EngineState.ASLEEP, EngineState.STOPPING, EngineState.STANDBY,
    EngineState.FAILED, EngineState.STOPPED,
)  # fmt: skip


def combined(members: Sequence[EngineInfo]) -> EngineInfo:
    """Several engines with the same model as one: as ready as the one that is most."""
    first = min(members, key=lambda info: _BY_USE.index(info.state))
    said = [f"{info.member}: {info.last_error}" for info in members if info.last_error]
    idle = [info.idle_for_s for info in members if info.idle_for_s is not None]
    holders = {pid for info in members for pid in info.lease_holders}
    return EngineInfo(
        state=first.state,
        mode=first.mode,
        model=first.model,
        is_alive=any(info.is_alive for info in members),
        state_since=first.state_since,
        progress=first.progress,
        starts=sum(info.starts for info in members),
        max_model_len=first.max_model_len,
        idle_for_s=min(idle) if idle and not holders else None,
        last_used=max((info.last_used or 0.0 for info in members), default=0.0) or None,
        lease_holders=tuple(sorted(holders)),
        devices=tuple(dict.fromkeys(device for info in members for device in info.devices)),
        urls=tuple(url for info in members for url in info.urls),
        pinned=any(info.pinned for info in members),
        idle_ttl_s=max((info.idle_ttl_s for info in members if info.idle_ttl_s is not None), default=None),
        leaves_at=None if holders else max((info.leaves_at for info in members if info.leaves_at), default=None),
        last_error="; ".join(said) or None,
        vllm_version=first.vllm_version,
        in_flight=_sum(info.in_flight for info in members),
        members=tuple(members),
        life=lives_together(info.life for info in members),
    )


def _sum(values: Iterator[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
