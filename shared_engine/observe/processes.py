"""An engine's processes: who is below whom, their memory and names. Reads, and touches no process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.proc import is_alive, living_processes, memory_bytes
from shared_engine.runtime.record import Record

# vLLM titles its processes, but setproctitle does not manage it in every environment: then their parent shows it.
_NAMELESS = re.compile(r"python|pt_main_thread")
_BY_PLACE = {"server": "EngineCore", "EngineCore": "Worker"}


@dataclass(frozen=True)
class ProcessNode:
    """One process of an engine, and those below it.

    Attributes:
        name: ``supervisor``, ``launcher``, ``server``, or what the process calls itself (``EngineCore``).
        memory_bytes: its share of RAM (PSS; RSS where the kernel has no PSS); None when it has just ended.
        gpu_memory_bytes: on all GPUs; None where the driver does not list it.
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
    roles = {record.supervisor_pid: "supervisor", record.launcher_pid: "launcher", record.server_pid: "server"}
    return next(iter(_trees([record.supervisor_pid], roles, gpu_memory)), None)


def tree_in_app(pids: Sequence[int], gpu_memory: Mapping[int, int]) -> ProcessNode | None:
    """This process, of which no memory is counted, above an engine's ``pids`` and all below them."""
    below = _trees(pids, {pid: "EngineCore" for pid in pids if _NAMELESS.match(_title(pid))}, gpu_memory)
    return ProcessNode(os.getpid(), "app", children=below) if below else None


def _trees(pids: Sequence[int], roles: Mapping[int, str], gpu_memory: Mapping[int, int]) -> tuple[ProcessNode, ...]:
    children: dict[int, list[int]] = {}
    for stat in living_processes():
        children.setdefault(stat.parent, []).append(stat.pid)

    def describe(pid: int, above: str) -> ProcessNode:
        name = roles.get(pid) or _title(pid)
        if _NAMELESS.match(name):
            name = _BY_PLACE.get(above, name)
        below = tuple(describe(child, name) for child in sorted(children.get(pid, ())))
        return ProcessNode(pid, name, memory_bytes(pid), gpu_memory.get(pid), below)

    return tuple(describe(pid, "") for pid in pids if is_alive(pid))


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
