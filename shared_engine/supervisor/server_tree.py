"""ServerTree: the processes that a server can't work without, each watched by the kernel.

vLLM may take seconds to notice that one of them is gone, and minutes to end: its API server waits for its connections.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from shared_engine.machine.proc import exit_code_of, group_members, is_alive, open_process, process_stat, title_of
from shared_engine.supervisor.ends import Exit, exit_reported

TITLE = "VLLM::"  # vLLM's setproctitle of its EngineCores and workers
REPORT_S, REPORT_POLL_S = 0.05, 0.002


@dataclass(frozen=True)
class _Member:
    name: str
    parent: int


class ServerTree:
    """Watches from construction on, until the first of them ends.

    Args:
        leader: the API server's process. Its own end is the launcher's to tell.
        on_exit: called once, with the process that ended first.
        log: gives vLLM's lines so far.
    """

    def __init__(self, leader: int, on_exit: Callable[[Exit], None], log: Callable[[], list[str]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader = leader
        self._on_exit = on_exit
        self._log = log
        self._members: dict[int, _Member] = {}
        self._fds: list[int] = []
        for pid in group_members(leader):
            self._watch(pid)

    def close(self) -> None:
        """Watch no longer."""
        while self._fds:
            fd = self._fds.pop()
            self._loop.remove_reader(fd)
            os.close(fd)

    def _watch(self, pid: int) -> None:
        title, stat = title_of(pid), process_stat(pid)
        if not title.startswith(TITLE) or stat is None:
            return
        fd = open_process(pid)
        if fd is not None:  # else vLLM's own watch has to do
            self._members[pid] = _Member(title.removeprefix(TITLE), stat.parent)
            self._fds.append(fd)
            self._loop.add_reader(fd, self._has_ended, pid)

    def _has_ended(self, pid: int) -> None:
        self.close()
        # The kernel ends a process with its parent: the parent's end is the cause.
        while (parent := self._members[pid].parent) in self._members and not is_alive(parent):
            pid = parent
        if parent == self._leader and not is_alive(parent):
            return
        self._on_exit(Exit(f"vLLM's {self._members[pid].name}", self._returncode(pid)))

    def _returncode(self, pid: int) -> int | None:
        """Nobody may have collected it yet; else its parent reports it in the log in a moment."""
        deadline = time.monotonic() + REPORT_S
        while (code := exit_code_of(pid)) is None and (code := exit_reported(self._log(), pid)) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(REPORT_POLL_S)
        return code
