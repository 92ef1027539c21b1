"""LifeStats: what an engine's starts and ends have come to. Kept in its record; standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class EvictionReason(str, Enum):
    """Why a model has left memory."""

    IDLE = "idle"  # for idle_ttl_s
    SLEEP = "sleep"  # idle for sleep_after_s: its weights are in RAM
    MAKE_ROOM = "make_room"  # another engine needed the memory
    ASKED = "asked"  # evict()
    SHUTDOWN = "shutdown"  # shutdown()


@dataclass(frozen=True)
class LifeStats:
    """The life of an engine since the machine was booted, whoever has used it; of a direct one in this process.

    Attributes:
        starts: starts that went well.
        returns: how often the model came back fast: starts from standby, and wakes.
        start_seconds: how long those starts and wakes took in all, by phase (``StartPhase``); not of direct engines.
        evictions: how often the model left memory, by EvictionReason.
        failures: starts that failed and servers that died, by FailureKind; ``killed`` where it was done from outside.
        counters: vLLM's own counters of the servers that have ended, added up; of one that died, as last seen.
    """

    starts: int = 0
    returns: int = 0
    start_seconds: Mapping[str, float] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)

    def started(self, phases_s: Mapping[str, float], *, is_return: bool) -> LifeStats:
        """After a start that went well, with the seconds of each phase."""
        seconds = added(self.start_seconds, phases_s)
        return replace(self, starts=self.starts + 1, returns=self.returns + is_return, start_seconds=seconds)

    def woke(self, phases_s: Mapping[str, float]) -> LifeStats:
        """After a wake from sleep."""
        return replace(self, returns=self.returns + 1, start_seconds=added(self.start_seconds, phases_s))

    def evicted(self, reason: EvictionReason) -> LifeStats:
        return replace(self, evictions=added(self.evictions, {reason.value: 1}))

    def failed(self, kind: str) -> LifeStats:
        return replace(self, failures=added(self.failures, {kind: 1}))

    def ended(self, counters: Mapping[str, float]) -> LifeStats:
        """A server has ended, whose counters had come to this."""
        return replace(self, counters=added(self.counters, counters))


def lives_together(lives: Iterable[LifeStats]) -> LifeStats:
    """Of several engines, added up."""
    whole = LifeStats()
    for life in lives:
        whole = LifeStats(
            starts=whole.starts + life.starts,
            returns=whole.returns + life.returns,
            start_seconds=added(whole.start_seconds, life.start_seconds),
            evictions=added(whole.evictions, life.evictions),
            failures=added(whole.failures, life.failures),
            counters=added(whole.counters, life.counters),
        )
    return whole


def added(sums: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both together, name by name."""
    return {name: sums.get(name, 0) + more.get(name, 0) for name in {**sums, **more}}
