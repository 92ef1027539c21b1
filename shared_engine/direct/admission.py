"""Room on the device for a direct engine that starts: one start at a time, and idle shared engines make room for it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shared_engine.machine.hub_cache import called
from shared_engine.machine.memory import MemoryNeed
from shared_engine.runtime.directory import RuntimeDir, runtime_root
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.eviction import DeviceAdmission
from shared_engine.supervisor.start_lock import StartLock

POLL_S = 0.5

_log = logging.getLogger("shared_engine")


@asynccontextmanager
async def admitted(spec: EngineSpec, policy: KeepPolicy, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
    """Waits for room on its devices, then is the only one that starts there.

    Args:
        on_wait: called with what is waited for, and with nothing when that is over; may raise, to give up.
    """
    name, root = called(spec.model), runtime_root()
    admission = DeviceAdmission(
        RuntimeDir(root / "direct"),
        spec.devices,
        MemoryNeed(spec.memory_share, spec.memory_bytes),
        on_wait,
        lambda said: _log.info("%s: %s", name, said),
        {**os.environ, **spec.environment}.get("CUDA_DEVICE_ORDER"),
    )
    while True:
        devices = await admission.devices()
        async with StartLock(root, devices, name, lambda other: on_wait(f"{other or 'another engine'} starts")):
            if await admission.make_room(policy.max_loaded_engines):
                on_wait("")
                yield
                return
        await asyncio.sleep(POLL_S)
