"""How callers want an engine kept; sent to its supervisor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from enum import Enum


@dataclass(frozen=True)
class TcpAddress:
    """Where other programs are to reach the engine.

    Attributes:
        port: the first one to try; 0 for any that is free.
        key: that each of their requests must have as its bearer token; empty for none.
    """

    host: str
    port: int
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class KeepPolicy:
    """Callers that share one engine may differ: the longest value holds. Names end in ``_s`` for seconds.

    Attributes:
        idle_ttl_s: from the end of the last request until the model leaves memory.
        sleep_after_s: from the end of the last request until the weights go to RAM; infinite for never.
        standby_ttl_s: how long the launcher stays after the model has left; 0 for no standby.
        start_timeout_s: longest start.
        stall_timeout_s: how long a start or a request may show no progress until the engine is taken for hung.
        pinned: never evicted to make room for another engine.
        max_loaded_engines: evict others before a start that would exceed it; 0 for no limit. The last caller's.
        serve_tcp: opened for this caller, whatever others wish; None for no port.
    """

    idle_ttl_s: float = 1800.0
    sleep_after_s: float = math.inf
    standby_ttl_s: float = 0.0
    start_timeout_s: float = 900.0
    stall_timeout_s: float = 300.0
    pinned: bool = False
    max_loaded_engines: int = 0
    serve_tcp: TcpAddress | None = None

    def unpinned(self) -> KeepPolicy:
        """As it is without the pin. Where it also had the engine stay for ever, that ends, too."""
        is_endless = self.pinned and math.isinf(self.idle_ttl_s)
        return replace(self, pinned=False, idle_ttl_s=KeepPolicy.idle_ttl_s if is_endless else self.idle_ttl_s)

    def merged_with(self, other: KeepPolicy) -> KeepPolicy:
        """The longer value of both, field by field; ``other`` came later."""
        names = {each.name for each in fields(self)} - {"serve_tcp"}
        longest = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return KeepPolicy(**{**longest, "max_loaded_engines": other.max_loaded_engines})


class IdleStep(Enum):
    """What to do with an engine that nobody uses."""

    KEEP = "keep"
    SLEEP = "sleep"  # its weights go to RAM
    EVICT = "evict"  # the model leaves memory


def idle_step(policy: KeepPolicy, idle_s: float, *, is_asleep: bool, can_sleep: bool) -> tuple[IdleStep, float]:
    """The step for an engine that has been idle for ``idle_s`` seconds, and the seconds until the next look."""
    if idle_s >= policy.idle_ttl_s:
        return IdleStep.EVICT, 0.0
    if is_asleep or not can_sleep or policy.sleep_after_s >= policy.idle_ttl_s:
        return IdleStep.KEEP, policy.idle_ttl_s - idle_s
    if idle_s >= policy.sleep_after_s:
        return IdleStep.SLEEP, 0.0
    return IdleStep.KEEP, policy.sleep_after_s - idle_s
