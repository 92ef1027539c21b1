"""What each process of an engine asks of the kernel: to die with its parent, to use AMX."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing.popen_fork
import multiprocessing.process
import os
import platform
import signal
import sys

from shared_engine.runtime.launcher_messages import ChildEnded, child_ended_line

# Opened here once: a child that was forked while another thread held the dynamic loader's lock can't open anything.
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. No-op where the kernel has no such call."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above: then no signal will come.
    if os.getppid() != parent:
        os._exit(1)


def is_orphan_of_its_session() -> bool:
    """True for a spawned process whose parent ended before it could ask: it is another's child by now."""
    return sys.platform == "linux" and os.getsid(os.getppid()) != os.getsid(0)


def allow_amx() -> None:
    """Ask the kernel to let this process, and those forked from it, use AMX tiles. No-op where there are none.

    vLLM's attention on the CPU uses them without asking (vllm/v1/attention/backends/cpu_attn.py). A worker whose first
    prompt is long has them from oneDNN, which asks; one whose first prompt is a few tokens died of SIGILL.
    """
    if sys.platform == "linux" and platform.machine() == "x86_64":
        LIBC.syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


def print_stack_when_asked() -> None:
    """Have this process, and those forked from it, print where they stand when the supervisor finds them hung."""
    faulthandler.register(signal.SIGUSR2, all_threads=False)


def adopt_orphans() -> None:
    """Become the reaper of the server's orphaned children, so that a killed group is really gone, not zombies."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def report_ends_of_children() -> None:
    """Have the log say how each process that vLLM starts has ended: vLLM does not always say so, nor how."""
    poll = multiprocessing.popen_fork.Popen.poll

    def reporting_poll(self: multiprocessing.popen_fork.Popen, flag: int = os.WNOHANG) -> int | None:
        was_known = self.returncode is not None
        returncode = poll(self, flag)
        if returncode is not None and not was_known:
            children = tuple(multiprocessing.process._children)  # type: ignore[attr-defined]
            name = next((child.name for child in children if getattr(child, "_popen", None) is self), "a-process")
            os.write(2, child_ended_line(ChildEnded(name, self.pid, returncode)))
        return returncode

    multiprocessing.popen_fork.Popen.poll = reporting_poll  # type: ignore[method-assign]
