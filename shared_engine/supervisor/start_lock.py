"""Which engine may start on a device: one at a time.

Two vLLM servers that start on one GPU at once measure each other's memory and get their KV caches wrong
(vllm-project/vllm issue 55827).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from shared_engine.machine.locks import try_lock

POLL_S = 0.05


class StartLock:
    """``async with StartLock(...)``: the only start of this user on these devices, for that long.

    Kernel locks, so that a killed supervisor's ends with it.

    Args:
        root: the folder of all engines.
        name: the engine's model, for those who wait.
        on_wait: called with the model whose start is waited for, as long as one is.
    """

    def __init__(self, root: Path, devices: Sequence[str], name: str, on_wait: Callable[[str], None]) -> None:
        # Old names of MIG instances hold slashes: MIG-GPU-.../1/0.
        self._paths = [root / f"{re.sub('[:/]', '-', device)}.start" for device in sorted(devices)]
        self._name = name
        self._on_wait = on_wait
        self._held: list[int] = []

    async def __aenter__(self) -> StartLock:
        while (blocker := self._take_all()) is not None:
            self._on_wait(blocker)
            await asyncio.sleep(POLL_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _take_all(self) -> str | None:
        """Take all or none, so that two that want the same devices can't wait for each other."""
        for path in self._paths:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not try_lock(fd, fcntl.LOCK_EX):
                blocker = os.pread(fd, 1000, 0).decode(errors="replace")
                os.close(fd)
                self._release()
                return blocker
            self._held.append(fd)
            with contextlib.suppress(OSError):  # on a full disk those who wait don't learn the name
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._name.encode(), 0)
        return None

    def _release(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()
