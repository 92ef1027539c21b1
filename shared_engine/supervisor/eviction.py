"""The user's other engines on the same devices: which are loaded, and asking idle ones to leave.

One supervisor asks another, over its control socket: nobody ends an engine but its owner, who alone knows whether
requests are running. Standard library only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.gpu import MemoryNeed, shortfall
from shared_engine.runtime.control import GONE
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.lease import open_lease_file, read_last_use
from shared_engine.runtime.record import EngineState, Record, current_record

LEAVE_TIMEOUT_S = 60.0
MEMORY_BACK_S = 5.0
POLL_S = 0.1
ROOM_POLL_S = 0.2  # how often to ask again for a place
_LOADED = (EngineState.READY, EngineState.ASLEEP, EngineState.STOPPING)


@dataclass(frozen=True)
class Neighbour:
    """Another engine that holds memory of the same device."""

    directory: RuntimeDir
    record: Record
    last_use: float
    """time.monotonic() of the end of its last request."""

    @property
    def name(self) -> str:
        return Path(self.record.model).name


def loaded_neighbours(directory: RuntimeDir, devices: Sequence[str]) -> list[Neighbour]:
    """Engines beside ``directory`` that are loaded on one of ``devices``; least recently used first."""
    found = []
    for path in directory.path.parent.iterdir():
        other = RuntimeDir(path)
        if path == directory.path or not other.record.exists():
            continue
        record = current_record(other)
        if record is None or record.state not in _LOADED or not set(record.devices) & set(devices):
            continue
        with contextlib.suppress(OSError):
            lease = open_lease_file(other.lease)
            ready_at = time.monotonic() - (time.time() - record.since)  # one that nobody has used yet is not the oldest
            found.append(Neighbour(other, record, max(read_last_use(lease), ready_at)))
            os.close(lease)
    return sorted(found, key=lambda neighbour: neighbour.last_use)


async def ask_to_leave(neighbour: Neighbour) -> str | None:
    """None when it is gone, its memory with it; else why it stays: ``busy``, ``pinned``."""
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(neighbour.directory.control_socket))
            try:
                writer.write(b'{"op": "make_room"}\n')
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return "does not answer"
    except (FileNotFoundError, ConnectionError):
        return None  # its supervisor has ended, and all it owned with it
    except OSError as exc:
        return f"can't be asked: {exc}"
    answer = json.loads(line) if line.endswith(b"\n") else GONE
    # A supervisor of an older release does not know what is asked.
    return None if answer["ok"] else str(answer.get("refusal", "does not make room"))


class Room:
    """Room for one engine on its devices.

    Args:
        directory: the engine's own.
        need: what its start asks of each device.
        say: called with what is being waited for, in words.
        note: called with what was done, for the log.
    """

    def __init__(
        self,
        directory: RuntimeDir,
        devices: Sequence[str],
        need: MemoryNeed,
        say: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._dir = directory
        self._devices = devices
        self._need = need
        self._say = say
        self._note = note
        self.staying: dict[str, str] = {}
        """Neighbours that were asked to leave and did not, with the reason."""

    async def make_ahead(self, max_loaded_engines: int) -> bool:
        """Evict idle neighbours, least recently used first, where a start would not fit beside them.

        vLLM takes ten seconds and more to find out by itself that memory is short. False while there is no place
        below ``max_loaded_engines`` (0: no limit). Memory is not waited for: vLLM has the last word.
        """
        self.staying = {}

        async def has_place() -> bool:
            return len(loaded_neighbours(self._dir, self._devices)) < max_loaded_engines

        if max_loaded_engines and not await has_place():
            await self._evict_until(has_place, f"max_loaded_engines = {max_loaded_engines}")
            if not await has_place():
                names = ", ".join(f"{name} is {why}" for name, why in self.staying.items())
                self._say(f"max_loaded_engines = {max_loaded_engines}: {names}")
                return False
        lack = await shortfall(self._devices, self._need)
        if lack is not None and loaded_neighbours(self._dir, self._devices):
            self._say(lack)
            await self._evict_until(self._fits, lack)
        return True

    async def make_all(self) -> bool:
        """Evict all idle neighbours; False if there was none. For a start that lacked memory."""

        return await self._evict_until(None, "not enough memory")

    async def _fits(self) -> bool:
        return await shortfall(self._devices, self._need) is None

    async def _evict_until(self, is_enough: Callable[[], Awaitable[bool]] | None, why: str) -> bool:
        """True if at least one has left; None: all."""
        evicted: list[str] = []
        asked: set[Path] = set()
        while is_enough is None or not await is_enough():
            candidates = [
                each for each in loaded_neighbours(self._dir, self._devices) if each.directory.path not in asked
            ]
            if not candidates:
                break
            asked.add(candidates[0].directory.path)
            refusal = await ask_to_leave(candidates[0])
            if refusal is not None:
                self.staying[candidates[0].name] = refusal
                continue
            evicted.append(candidates[0].name)
            deadline = time.monotonic() + MEMORY_BACK_S
            while is_enough is not None and not await is_enough() and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        if evicted:
            self._note(f"{why}: evicted {', '.join(evicted)}")
        return bool(evicted)
