"""What the kernel and nvidia-smi tell of processes: who is below whom, their memory, names and locks.

It reads ``/proc`` and touches no process. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.gpu import nvidia_smi
from shared_engine.runtime.record import Record

_PAGE = os.sysconf("SC_PAGE_SIZE")
# vLLM titles its processes, but setproctitle does not manage it in every environment: then their place tells.
_NAMELESS = re.compile(r"python|pt_main_thread")
_BY_PLACE = {"server": "EngineCore", "EngineCore": "Worker"}


@dataclass(frozen=True)
class ProcessNode:
    """One process of an engine, and those below it.

    Attributes:
        name: ``supervisor``, ``launcher``, ``server``, or what the process calls itself (``EngineCore``).
        memory_bytes: its share of RAM (PSS; RSS where the kernel does not tell); None when it has just ended.
        gpu_memory_bytes: on all GPUs; None where nvidia-smi does not list it.
    """

    pid: int
    name: str
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    children: tuple[ProcessNode, ...] = ()

    def walk(self) -> Iterator[ProcessNode]:
        """This process and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def process_tree(record: Record, gpu_memory: Mapping[int, int]) -> ProcessNode | None:
    """An engine's supervisor and all below it; None where there is no such process."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    roles = {record.supervisor_pid: "supervisor", record.launcher_pid: "launcher", record.server_pid: "server"}

    def describe(pid: int, above: str) -> ProcessNode:
        name = roles.get(pid) or _title(pid)
        if _NAMELESS.match(name):
            name = _BY_PLACE.get(above, name)
        below = tuple(describe(child, name) for child in sorted(children.get(pid, ())))
        return ProcessNode(pid, name, _memory_of(pid), gpu_memory.get(pid), below)

    return describe(record.supervisor_pid, "") if Path(f"/proc/{record.supervisor_pid}").exists() else None


def _title(pid: int) -> str:
    """What a process calls itself, without arguments."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if command.startswith("VLLM::"):
            return command.removeprefix("VLLM::").split()[0]
        tracker = re.search(r"multiprocessing\.(resource_tracker|forkserver)", command)
        return tracker[1] if tracker else Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, IndexError):
        return "?"


def program_of(pid: int) -> str:
    """The program's name, and the script's or module's where it is Python; no other argument, which may be secret."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    program = os.path.basename(argv[0])
    if not program.startswith("python"):
        return program.split(" ")[0] or "?"
    if len(argv) > 2 and argv[1] == "-m":
        return f"{program} -m {argv[2]}"
    return f"{program} {os.path.basename(argv[1])}" if len(argv) > 1 and argv[1][:1] not in ("-", "") else program


def _memory_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return None


def read_gpu_memory() -> dict[int, int]:
    """Bytes on all GPUs by PID."""
    found: dict[int, int] = {}
    for pid, used in nvidia_smi("--query-compute-apps=pid,used_memory"):
        with contextlib.suppress(ValueError):  # "[N/A]"
            found[int(pid)] = found.get(int(pid), 0) + (int(used) << 20)
    return found


# ---- locks, as the kernel lists them


def shared_locks() -> dict[str, set[int]]:
    """``<major>:<minor>:<inode>`` of a file -> the PIDs that took a shared flock on it.

    One lock is listed once, under the process that took it: forked children that share it are not counted.
    """
    found: dict[str, set[int]] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6 and (fields[1], fields[3]) == ("FLOCK", "READ"):  # those that wait have "->" in [1]
                found.setdefault(fields[5], set()).add(int(fields[4]))
    return found


def holders(path: Path, locks: Mapping[str, set[int]]) -> tuple[int, ...]:
    """Who of ``locks`` holds this file."""
    try:
        with open(path, "rb") as file:
            return tuple(sorted(locks.get(_name_in_locks(file.fileno()), ())))
    except OSError:
        return ()


def _name_in_locks(fd: int) -> str:
    """The kernel names a file by its file system's device, which stat() does not tell on btrfs, but mountinfo does."""
    status = os.fstat(fd)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    with contextlib.suppress(OSError):
        mount = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split(" ", 3)
            if mount and fields[0] == mount[1]:
                major, minor = map(int, fields[2].split(":"))
    return f"{major:02x}:{minor:02x}:{status.st_ino}"
