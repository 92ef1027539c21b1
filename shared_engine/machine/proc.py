"""Processes as ``/proc`` shows them. Reads, and touches no process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# What people and service managers end processes with; a process that fails by itself is sent others.
FROM_OUTSIDE = frozenset((signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# POSIX shared memory and semaphores as Python names them, and what vLLM's workers on a CPU have among them; whoever is
# killed leaves them behind.
_SHARED_FILE = re.compile(r"/dev/shm/(?:(?:psm_|sem\.mp-)\S+|\S+-cpushm_\d+)")


@dataclass(frozen=True)
class ProcessStat:
    """One line of ``/proc/<pid>/stat``.

    Attributes:
        is_stopped: somebody has sent it SIGSTOP, or one of its kin.
        cpu_s: processor time used so far, in seconds.
    """

    pid: int
    is_zombie: bool
    is_stopped: bool
    parent: int
    group: int
    cpu_s: float


def process_stat(pid: int) -> ProcessStat | None:
    """None for a process that has ended and was collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return ProcessStat(pid, fields[0] == "Z", fields[0] == "T", int(fields[1]), int(fields[2]), cpu_s)


def open_process(pid: int) -> int | None:
    """A file descriptor that holds a process, and is readable once it has ended (a pidfd).

    None where it has ended and was collected; where this Python was built without it (older ones of uv), or the kernel
    has none, or refuses it (before Linux 5.3; gVisor, some containers); and without a file descriptor left.
    """
    pidfd_open = getattr(os, "pidfd_open", None)
    with contextlib.suppress(OSError):
        return None if pidfd_open is None else int(pidfd_open(pid))
    return None


def is_stopped(process: int) -> bool:
    """True for a process, by its file descriptor, that was sent SIGSTOP or one of its kin."""
    try:
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{process}").read_text().splitlines())
    except OSError:
        return False
    stat = process_stat(int(fields["Pid"]))
    return stat is not None and stat.is_stopped


def exit_code_of(pid: int) -> int | None:
    """How a process that nobody has collected yet has ended: its exit code, or minus the signal's number.

    None while it runs, and once it was collected.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return os.waitstatus_to_exitcode(int(fields[49])) if fields[0] == "Z" else None


def title_of(pid: int) -> str:
    """What a process calls itself; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def out_of_memory_kills() -> int:
    """How many processes the kernel of this machine has killed since its boot because memory ran out."""
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        if found:
            return int(found[1])
    return 0


def living_processes() -> Iterator[ProcessStat]:
    """Every process of the machine, zombies left out."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            stat = process_stat(int(entry.name))
            if stat is not None and not stat.is_zombie:
                yield stat


def is_alive(pid: int) -> bool:
    """True for a running process; False for a zombie."""
    stat = process_stat(pid)
    return stat is not None and not stat.is_zombie


def is_any_stopped(pids: Iterable[int]) -> bool:
    """True when somebody has stopped one of these processes, as with SIGSTOP."""
    return any(stat.is_stopped for pid in pids if (stat := process_stat(pid)) is not None)


def is_resource_tracker(pid: int) -> bool:
    """True for the helper by which Python's multiprocessing tidies up: no answer waits for it."""
    with contextlib.suppress(OSError):  # it has ended
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def group_members(pgid: int) -> list[int]:
    """PIDs of a process group, zombies left out."""
    return [stat.pid for stat in living_processes() if stat.group == pgid]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time used by processes, those that have ended left out."""
    return sum(stat.cpu_s for pid in pids if (stat := process_stat(pid)))


def waited_seconds(pids: Iterable[int]) -> float:
    """How long threads of these processes were ready to run and had no processor; 0 where the kernel does not count."""
    waited_ns = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            waited_ns += sum(int(file.read_text().split()[1]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return waited_ns / 1e9


def is_runnable(pids: Iterable[int]) -> bool:
    """True when a thread of these processes runs, or would if it had a processor.

    ``waited_seconds`` counts a wait only when it is over: a thread that gets no processor at all shows here alone.
    """
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            for file in Path(f"/proc/{pid}/task").glob("*/stat"):
                if file.read_text().rpartition(")")[2].split()[0] == "R":
                    return True
    return False


def memory_bytes(pid: int) -> int | None:
    """Share of RAM (PSS; RSS where the kernel has no PSS); None for a process that has just ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return None


def catches_signal(pid: int, number: signal.Signals) -> bool:
    """True when a process has a handler for a signal that would else end it; False where that can't be known."""
    with contextlib.suppress(OSError):  # it ends meanwhile
        found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
    return False


def shared_files(pids: Iterable[int]) -> tuple[str, ...]:
    """Files of shared memory that processes have mapped and that still have a name."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            found.update(path for path in _SHARED_FILE.findall(maps) if os.path.exists(path))
    return tuple(sorted(found))


def exit_in_words(returncode: int | None, *, memory_ran_out: bool | None = None) -> str:
    """How a process ended that nobody of ours had asked to, to follow its name: ``was killed by SIGKILL ...``.

    Args:
        returncode: minus the number of the signal, where one has ended it; None where it is not known.
        memory_ran_out: whether the kernel has killed processes for that meanwhile; None where it is not known.
    """
    if returncode is None:
        return "ended"
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if name == "SIGKILL" and memory_ran_out is not False:
        or_else = "" if memory_ran_out else "from outside, or "
        return f"was killed by {name} ({or_else}by the kernel when memory ran out)"
    return f"was killed by {name}{' (from outside)' if -returncode in FROM_OUTSIDE else ''}"
