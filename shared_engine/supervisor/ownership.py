"""Ownership of an engine: supervisor.lock, held for life. Without it this process has no business left."""

from __future__ import annotations

import os
import signal

from shared_engine.machine.locks import is_at
from shared_engine.machine.process_group import signal_group
from shared_engine.runtime.directory import RuntimeDir


class Ownership:
    """The lock file, and what happens when somebody removes it.

    Args:
        lock_fd: supervisor.lock, open and locked by this process.
    """

    def __init__(self, directory: RuntimeDir, lock_fd: int) -> None:
        self._dir = directory
        self._lock_fd = lock_fd

    def exit_if_lost(self, server_pid: int) -> None:
        """End this process, and all below it, if the lock file is gone or another one.

        Nobody finds this engine any more then, and its paths may be another's by now.

        Args:
            server_pid: the server's process group; 0 without one.
        """
        if is_at(self._dir.lock, self._lock_fd):
            return
        if server_pid:
            signal_group(server_pid, signal.SIGKILL)
        os._exit(0)  # the kernel ends the launcher with this process
