"""Another gateway in this one's place, on the same sockets: no connection is refused, or waits for this one's end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence

from shared_engine.machine.service_manager import FIRST_FD, with_files

READY = "vllm-local-ready"
"""The name of the file to which the new gateway writes its process id when it is."""
# A child of nobody here: systemd waits for the end of its own children only, and would kill any other at a stop.
_ORPHAN = """
import os, sys
if os.fork() == 0:
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(sys.argv[1], sys.argv[1:])
"""
logger = logging.getLogger(__name__)


class Handover:
    """Starts the command of this process again, and says when the new one is ready.

    Args:
        sockets: that it listens on too.
        done: called with the process id of the new one.
    """

    def __init__(self, sockets: Sequence[socket.socket], done: Callable[[int], None]) -> None:
        self._sockets = sockets
        self._done = done
        self._is_under_way = False

    def begin(self) -> None:
        """On an event loop. A new one that does not get ready changes nothing."""
        if self._is_under_way:
            logger.warning("another gateway is being started already")
            return
        self._is_under_way = True
        ready, written = os.pipe()
        try:
            pid = self._start(written)
        except OSError as exc:
            os.close(ready)
            self._failed(f"it can't be started: {exc}")
            return
        finally:
            os.close(written)
        logger.info("another gateway is started to take over")
        asyncio.get_running_loop().add_reader(ready, self._heard, ready, pid)

    def _start(self, written: int) -> int:
        files = [*(sock.fileno() for sock in self._sockets), written]
        names = [*[""] * len(self._sockets), READY]
        command = [sys.executable, "-I", "-S", "-c", _ORPHAN, sys.executable, *sys.orig_argv[1:]]
        # Out of the way of the numbers that they are to get.
        moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + len(files)) for each in files]
        try:
            actions = [(os.POSIX_SPAWN_DUP2, each, FIRST_FD + at) for at, each in enumerate(moved)]
            return os.posix_spawn(command[0], command, with_files(os.environ, names), file_actions=actions)
        finally:
            for each in moved:
                os.close(each)

    def _heard(self, ready: int, pid: int) -> None:
        asyncio.get_running_loop().remove_reader(ready)
        told = os.read(ready, 32)
        os.close(ready)
        os.waitpid(pid, 0)  # which has started the other one, and ended
        if told:
            self._done(int(told))
        else:  # it has closed the file, or ended
            self._failed("it was not ready before it ended; it says why")

    def _failed(self, why: str) -> None:
        self._is_under_way = False
        logger.error("no other gateway takes over, this one goes on: %s", why)
