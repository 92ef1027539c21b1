"""The supervisor's process: detach, take the lock, run. Started by request/spawn.py."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from shared_engine.machine.locks import try_lock
from shared_engine.machine.process_group import adopt_orphans
from shared_engine.machine.sockets import can_connect
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.supervisor.supervisor import Supervisor

LOCK_PATIENCE_S = 0.5


def main(argv: list[str]) -> int:
    """Supervise the engine of a runtime directory.

    Exits at once, with 0, when another supervisor owns the engine: whoever started this one talks to that one.
    """
    directory = RuntimeDir(Path(argv[0]))
    # Twice removed, so that no tool that kills an app's process tree takes an engine others share.
    if os.fork():
        os._exit(0)
    os.setsid()
    lock_fd = os.open(directory.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Not at the first refusal: a client that looks whether an engine is supervised holds the lock for an instant.
    patience = time.monotonic() + LOCK_PATIENCE_S
    while not try_lock(lock_fd, fcntl.LOCK_EX):
        # Not waiting for the lock either: its owner may exit soon, and nobody would want this supervisor then.
        if time.monotonic() > patience or can_connect(str(directory.control_socket)):
            return 0
        time.sleep(0.01)
    os.chdir(directory.path)
    adopt_orphans()
    asyncio.run(_supervise(directory, lock_fd))
    return 0


async def _supervise(directory: RuntimeDir, lock_fd: int) -> None:
    await Supervisor(directory, lock_fd).run()
