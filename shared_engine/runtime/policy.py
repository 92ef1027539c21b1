"""How callers want an engine kept; what they tell its supervisor. Standard library only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Policy:
    """Callers that share one engine may differ: the longest wish holds. Seconds, where the name says so.

    Attributes:
        idle_ttl_s: from the end of the last request until the model leaves memory.
        sleep_after_s: from the end of the last request until the weights go to RAM; infinite for never.
        standby_ttl_s: how long the launcher stays after the model has left; 0 for no standby.
        start_timeout_s: longest start.
        stall_timeout_s: how long a start or a request may show no progress until the engine is taken for hung.
        pinned: never evicted to make room for another engine.
        max_loaded_engines: evict others before a start that would exceed it; 0 for no limit. The last caller's.
    """

    idle_ttl_s: float = 1800.0
    sleep_after_s: float = math.inf
    standby_ttl_s: float = 0.0
    start_timeout_s: float = 900.0
    stall_timeout_s: float = 300.0
    pinned: bool = False
    max_loaded_engines: int = 0

    def widened(self, other: Policy) -> Policy:
        """The longer wish of both, field by field."""
        wishes = {name: max(value, getattr(other, name)) for name, value in asdict(self).items()}
        return Policy(**{**wishes, "max_loaded_engines": other.max_loaded_engines})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def idle_step(policy: Policy, idle_s: float, *, is_asleep: bool, can_sleep: bool) -> tuple[str | None, float]:
    """What to do with an engine that nobody has used for ``idle_s`` seconds: (step, seconds until the next look).

    The step is ``"evict"``, ``"sleep"`` or None.
    """
    if idle_s >= policy.idle_ttl_s:
        return "evict", 0.0
    if is_asleep or not can_sleep or policy.sleep_after_s >= policy.idle_ttl_s:
        return None, policy.idle_ttl_s - idle_s
    if idle_s >= policy.sleep_after_s:
        return "sleep", 0.0
    return None, policy.sleep_after_s - idle_s
