"""Which of the processes that want the same processor go first."""

from __future__ import annotations

import contextlib
import os

NICE = 5


def give_way(group: int) -> None:
    """Let other programs go before this process group, the first process of which leads a session of its own.

    An engine on the CPU keeps all cores busy. Without this, an app that waits for the first piece of a stream may get
    no processor until the answer is complete (benchmarks/NOTES.md). Where the kernel shares the processor between
    sessions (sched_autogroup_enabled), nice values count only within a session, and the session has one of its own;
    elsewhere, and in containers, those of the processes count. So both are set.
    """
    # No such kernel; or the group has ended meanwhile.
    with contextlib.suppress(OSError), open(f"/proc/{group}/autogroup", "w") as file:
        file.write(str(NICE))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, group, NICE)
