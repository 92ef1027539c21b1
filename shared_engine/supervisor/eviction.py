"""Room on a device: the user's other engines there, and having idle ones evicted.

One supervisor asks another, over its control socket: only its own supervisor ends an engine, since it alone knows
whether requests are running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.gpu import find_gpus, in_cuda_order, same_names
from shared_engine.machine.hub_cache import called
from shared_engine.machine.memory import MemoryNeed, shortfall
from shared_engine.machine.nvml import Gpu
from shared_engine.runtime.control import Control
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.lease import open_lease_file, read_last_use
from shared_engine.runtime.messages import NotUnderstood, Refused
from shared_engine.runtime.record import EngineState, Record, current_record

ASK_TIMEOUT_S = 60.0
FREED_S = 5.0
POLL_S = 0.1
_HOLDS_MEMORY = (EngineState.READY, EngineState.ASLEEP, EngineState.STOPPING)


@dataclass(frozen=True)
class LoadedEngine:
    """Another engine that holds memory of the same device."""

    directory: RuntimeDir
    record: Record
    last_use: float
    """time.monotonic() of the end of its last request."""

    @property
    def name(self) -> str:
        return called(self.record.model)

    @property
    def is_asleep(self) -> bool:
        """It holds little of the device's memory."""
        return self.record.state is EngineState.ASLEEP


def _last_use(engine: LoadedEngine) -> tuple[float, ...]:
    return (engine.last_use,)


def _memory_first(engine: LoadedEngine) -> tuple[float, ...]:
    return engine.is_asleep, engine.last_use


def others_loaded(directory: RuntimeDir, devices: Sequence[str], gpus: Sequence[Gpu] = ()) -> list[LoadedEngine]:
    """Engines beside ``directory`` that are loaded on one of ``devices``.

    Args:
        gpus: in CUDA's order; by which a device is known under each of its names.
    """
    found = []
    wanted = set(same_names(devices, gpus))
    for path in directory.path.parent.iterdir():
        other = RuntimeDir(path)
        if path == directory.path or not other.record.exists():
            continue
        record = current_record(other)
        if record is None or record.state not in _HOLDS_MEMORY or not wanted & {*same_names(record.devices, gpus)}:
            continue
        with contextlib.suppress(OSError):
            lease = open_lease_file(other.lease)
            # One that nobody has used yet is not the oldest.
            ready_at = time.monotonic() - (time.time() - record.state_since)
            found.append(LoadedEngine(other, record, max(read_last_use(lease), ready_at)))
            os.close(lease)
    return found


async def ask_to_make_room(engine: LoadedEngine) -> str | None:
    """None when it is gone, its memory with it; else why it stays: ``busy``, ``pinned``, or in other words."""
    try:
        reply = await Control(engine.directory).make_room(ASK_TIMEOUT_S)
    except TimeoutError:
        return "does not reply"
    except OSError as exc:
        return f"can't be asked: {exc}"
    if isinstance(reply, Refused):
        return reply.refusal.value
    # None: its supervisor has ended, and all it owned with it.
    return "does not make room" if isinstance(reply, NotUnderstood) else None


class DeviceAdmission:
    """Admits one engine to its devices, when there is room.

    Args:
        directory: the engine's own.
        need: what its start asks of each device.
        on_wait: called with what is being waited for, in words.
        log: called with what was done.
        device_order: CUDA_DEVICE_ORDER of the engine.
    """

    def __init__(
        self,
        directory: RuntimeDir,
        devices: Sequence[str],
        need: MemoryNeed,
        on_wait: Callable[[str], None],
        log: Callable[[str], None],
        device_order: str | None = None,
    ) -> None:
        self._dir = directory
        self._devices = devices
        self._need = need
        self._on_wait = on_wait
        self._log = log
        self._order = device_order
        self._gpus: tuple[Gpu, ...] = ()
        self._held_by: Collection[int] = ()
        self.made_room: tuple[str, ...] = ()
        """Engines that were evicted because memory was short, since the start began."""
        self.refused: dict[str, str] = {}
        """Engines that were asked to make room and stay, with the reason."""

    async def devices(self) -> tuple[str, ...]:
        """Each under one name, whatever others call it."""
        if not self._gpus and any(device.startswith("cuda") for device in self._devices):
            self._gpus = await asyncio.to_thread(lambda: in_cuda_order(find_gpus(), self._order))
        return same_names(self._devices, self._gpus)

    async def make_room(self, max_loaded_engines: int, held_by: Collection[int] = ()) -> bool:
        """Have idle engines evicted, where a start would not fit beside them: the least recently used first, and for
        want of memory those that sleep last.

        vLLM takes ten seconds and more to find out by itself that memory is short. False while there is no room
        below ``max_loaded_engines`` (0: no limit). Memory is not waited for: vLLM has the last word.

        Args:
            held_by: the processes of an engine that wakes, which have some of the memory already.
        """
        self.refused, self._held_by = {}, held_by
        await self.devices()

        async def is_below_limit() -> bool:
            return len(self._others()) < max_loaded_engines

        if max_loaded_engines and not await is_below_limit():
            await self._evict_until(is_below_limit, f"max_loaded_engines = {max_loaded_engines}", _last_use)
            if not await is_below_limit():
                names = ", ".join(f"{name} is {why}" for name, why in self.refused.items())
                self._on_wait(f"max_loaded_engines = {max_loaded_engines}: {names}")
                return False
        lack = await self.lack()
        if lack is not None and self._others():
            self._on_wait(lack)
            self.made_room += tuple(await self._evict_until(self._fits, lack, _memory_first))
        return True

    async def evict_all_idle(self) -> bool:
        """For a start that lacked memory. False if there was none to evict."""

        async def is_enough() -> bool:
            return False

        evicted = await self._evict_until(is_enough, "not enough memory", _memory_first, wait_s=0.0)
        self.made_room += tuple(evicted)
        return bool(evicted)

    def _others(self) -> list[LoadedEngine]:
        return others_loaded(self._dir, self._devices, self._gpus)

    async def lack(self) -> str | None:
        """Which device lacks how much, in words; None where it has enough, or nothing is known of it."""
        return await shortfall(self._devices, self._need, self._order, self._held_by)

    async def _fits(self) -> bool:
        return await self.lack() is None

    async def _evict_until(
        self,
        is_enough: Callable[[], Awaitable[bool]],
        why: str,
        order: Callable[[LoadedEngine], tuple[float, ...]],
        wait_s: float = FREED_S,
    ) -> list[str]:
        """The names of those that were evicted.

        Args:
            order: the first by this goes first.
            wait_s: how long to wait after each for its memory to come back.
        """
        evicted: list[str] = []
        asked: set[Path] = set()
        while not await is_enough():
            candidates = [each for each in self._others() if each.directory.path not in asked]
            if not candidates:
                break
            engine = min(candidates, key=order)
            asked.add(engine.directory.path)
            refusal = await ask_to_make_room(engine)
            if refusal is not None:
                self.refused[engine.name] = refusal
                continue
            evicted.append(engine.name)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline and not await is_enough():
                await asyncio.sleep(POLL_S)
        if evicted:
            self._log(f"{why}: evicted {', '.join(evicted)}")
        return evicted
