"""What all models do at this moment, looked at once for everybody who asks. Looking starts nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import shared_engine
from shared_engine.errors import VLLMError
from shared_engine.gateway.catalog import LOOK_S, Catalog, ServedModel
from shared_engine.gateway.config import Key
from shared_engine.gateway.life.devices import Devices
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.sending import metrics_of
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.life_stats import added
from shared_engine.runtime.metrics import counters
from shared_engine.runtime.record import EngineState
from shared_engine.runtime.redacted import redacted

FRESH_S = 0.4
"""So old may a look be."""
FRESH_REMOTE_S = 5.0
FRESH_MEMORY_S = 5.0
RATE_S = 5.0
"""Rates are those of the last so many seconds."""
_LOADED = (EngineState.READY, EngineState.ASLEEP)
_TOKENS = {"prompt": "prompt_tokens", "completion": "generation_tokens"}


@dataclass
class _Seen:
    """Of one model.

    Attributes:
        counts: when, and what vLLM's counters were then.
    """

    info: EngineInfo | None = None
    looked_at: float = 0.0
    memory: tuple[int | None, float] = (None, 0.0)
    counts: deque[tuple[float, Mapping[str, float]]] = field(default_factory=deque)

    def count(self, now: float, found: Mapping[str, float]) -> None:
        if self.counts and any(found.get(name, 0) < self.counts[-1][1].get(name, 0) for name in _TOKENS.values()):
            self.counts.clear()  # of another start
        self.counts.append((now, found))
        while len(self.counts) > 2 and self.counts[1][0] < now - RATE_S:
            self.counts.popleft()

    def per_second(self) -> dict[str, float] | None:
        """Tokens of all who ask the engine; None where nobody counts."""
        if not self.counts:
            return None
        (began, first), (ended, last) = self.counts[0], self.counts[-1]
        lasted_s = ended - began
        return {
            kind: round((last.get(name, 0) - first.get(name, 0)) / lasted_s, 1) if lasted_s > 0 else 0.0
            for kind, name in _TOKENS.items()
        }

    def tokens(self, info: EngineInfo) -> dict[str, int]:
        """Since the machine was booted."""
        counted = added(info.life.counters, self.counts[-1][1] if self.counts else {})
        return {kind: int(counted.get(name, 0)) for kind, name in _TOKENS.items()}


class Board:
    """Of the models of one catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._seen: WeakKeyDictionary[ServedModel, _Seen] = WeakKeyDictionary()
        self._devices = Devices()
        self._devices_seen: tuple[list[dict[str, Any]], float] = ([], 0.0)
        self._looking = asyncio.Lock()

    async def status(self, key: Key | None, *, is_admin: bool) -> dict[str, Any]:
        """Of everything that the key may see, as ``/api/v1/inference/status`` has it."""
        models, allowed = self._catalog.opened(key), self._catalog.allowed(key)
        await self._look(list(models))
        waiting = Counter((each.model, each.is_waiting) for each in self._catalog.in_flight)
        return {
            "models": [self._entry(model, waiting, name, allowed) for model, name in models.items()],
            "devices": self._devices_seen[0],
            "version": shared_engine.__version__,
            "started": self._catalog.began,
            "is_admin": is_admin,
        }

    async def entry(self, model: ServedModel, key: Key | None) -> dict[str, Any]:
        """Of one model that the key opens, looked at now."""
        name, allowed = self._catalog.opened(key).get(model, model.config.id), self._catalog.allowed(key)
        seen = self._seen.setdefault(model, _Seen())
        seen.looked_at, seen.memory = 0.0, (seen.memory[0], 0.0)
        await self._look([model])
        waiting = Counter((each.model, each.is_waiting) for each in self._catalog.in_flight)
        return self._entry(model, waiting, name, allowed)

    # ---- looking

    async def _look(self, models: list[ServedModel]) -> None:
        async with self._looking:
            await asyncio.gather(*map(self._look_at, models))
            if time.monotonic() - self._devices_seen[1] > FRESH_S:
                self._devices_seen = (await in_a_thread(self._devices.look), time.monotonic())

    async def _look_at(self, model: ServedModel) -> None:
        seen, now = self._seen.setdefault(model, _Seen()), time.monotonic()
        is_remote = model.config.settings.is_remote
        if seen.looked_at and now - seen.looked_at < (FRESH_REMOTE_S if is_remote else FRESH_S):
            return
        is_memory_due = not is_remote and now - seen.memory[1] > FRESH_MEMORY_S
        try:
            async with asyncio.timeout(LOOK_S):
                seen.info = await model.endpoint.status(processes=is_memory_due)
                seen.looked_at = now
                if is_memory_due or not seen.info.is_alive:
                    held = seen.info.gpu_memory_bytes
                    seen.memory = (seen.info.memory_bytes if held is None else held, now)
                if is_remote or seen.info.state is not EngineState.READY:
                    seen.counts.clear()
                else:
                    seen.count(now, counters(await metrics_of(model.endpoint)))
        except (VLLMError, TimeoutError):
            seen.info, seen.looked_at = (None, now) if seen.looked_at != now else (seen.info, now)

    # ---- showing

    def _entry(
        self, model: ServedModel, requests: Counter[tuple[str, bool]], name: str, allowed: Sequence[str]
    ) -> dict[str, Any]:
        seen, config = self._seen[model], model.config
        info, fields, settings = seen.info, config.fields, config.settings
        is_loaded = info is not None and info.state in _LOADED
        leaves_at = None if info is None else info.leaves_at
        return {
            "id": name,
            "model": settings.model,
            "name": fields.name,
            "description": fields.description,
            "aliases": [each for each in fields.aliases if each in allowed and each != name],
            "adapters": [each for each in config.adapters if each in allowed and each != name],
            "unlisted": fields.unlisted,
            "is_remote": settings.is_remote,
            "state": None if info is None else info.state.value,
            "progress": _progress(info),
            "failure": None if info is None or not info.last_error else {"message": redacted(info.last_error)},
            "capabilities": model.capabilities(),
            "max_model_len": model.context_window,
            "devices": [] if info is None else list(info.devices),
            "memory_bytes": seen.memory[0] if is_loaded else None,
            "pinned": info.pinned if info is not None and is_loaded else model.kept.is_pinned,
            "preload": fields.preload,
            "start_s": None if info is None else info.start_s,
            "leaves_at": leaves_at,
            "leaves_in_s": None if leaves_at is None else max(0, round(leaves_at - time.time())),
            "requests": {
                "running": requests[config.id, False],
                "waiting": requests[config.id, True],
                "limit": fields.concurrency_limit,
                "queue_limit": fields.queue_limit,
            },
            "tokens_per_s": seen.per_second(),
            "tokens": None if info is None or settings.is_remote else seen.tokens(info),
            "members": [] if info is None else [_member(each) for each in info.members],
        }


def _progress(info: EngineInfo | None) -> dict[str, Any] | None:
    if info is None or info.progress is None:
        return None
    progress = info.progress
    return {
        "phase": progress.phase.value,
        "text": str(progress),
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit or None,
        "since": progress.since,
    }


def _member(info: EngineInfo) -> dict[str, Any]:
    return {
        "name": info.member,
        "state": info.state.value,
        "in_flight": info.in_flight,
        "progress": _progress(info),
        "failure": {"message": redacted(info.last_error)} if info.last_error else None,
    }
