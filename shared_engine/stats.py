"""EngineStats: what an engine's requests and starts have come to, in numbers. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shared_engine.runtime.life_stats import LifeStats


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long something took, in seconds. Quantiles are within 3 % of the true ones; None without any entry.

    Attributes:
        count: how many entries there are.
        sum_s: all of them together.
    """

    count: int = 0
    sum_s: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None

    @property
    def mean_s(self) -> float | None:
        return self.sum_s / self.count if self.count else None


@dataclass(frozen=True, kw_only=True)
class RequestStats:
    """The requests that this process has sent to one engine, and that have ended.

    A request is one prompt, one conversation, one call for scores, or up to ``batch_size`` texts to embed. A batch is
    as many as it has items. One that was tried again is still one.

    Attributes:
        requests: all of them: ``successes``, ``errors`` and ``cancelled``.
        cancelled: the caller was cancelled, or left a stream before its end.
        errors: those that raised an error, by its class.
        retries: tries after the first, which callers do not see.
        prompt_tokens, completion_tokens: as the engine counted them, of answers that were whole.
        cached_tokens: prompt tokens found in the prefix cache, where the server says so.
        latency: from the call to the end of its answer, of successes; with the wait for a start.
        time_to_first_token: from the call to the first piece that was not empty, of streams.
        wait: from the call until the engine could be asked, of all that got so far: nothing, or a start.
    """

    requests: int = 0
    successes: int = 0
    cancelled: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    latency: Timing = Timing()
    time_to_first_token: Timing = Timing()
    wait: Timing = Timing()

    @property
    def context_overflows(self) -> int:
        """Prompts that were longer than the model takes."""
        return self.errors.get("ContextLengthError", 0)


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What ``Engine.stats()`` returns.

    Attributes:
        requests: of this process; they begin at zero with ``reset_stats()``, and in a forked child.
        life: of the engine; None for a remote one.
        counters: vLLM's own counters by name, such as ``generation_tokens``, of all starts together; of a remote server
            since its own start. They count every client's requests.
        gpu_alerts: how often monitors of this process have told that a GPU is over their threshold, by its UUID.
        member: of a server of a fleet its URL; of a replica its devices, such as ``cuda:2,3``.
        members: of a fleet, each server; of replicas each engine. A request counts for the member that it was asked of
            last, and the fleet's are all of them together. Two objects that ask the same server share its numbers.
    """

    requests: RequestStats
    life: LifeStats | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    gpu_alerts: Mapping[str, int] = field(default_factory=dict)
    member: str | None = None
    members: tuple[EngineStats, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it in JSON's own types, under the names of the attributes."""
        return asdict(self)
