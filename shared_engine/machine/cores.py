"""The processor's cores that this process may use, and how workers share them. Reads ``/sys``, and touches nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")

Core = tuple[int, ...]


def usable_cores(system: Path = _SYSTEM) -> list[Core]:
    """The logical processors of each core that this process may run on; those of one NUMA node stand together."""
    nodes = {
        cpu: int(folder.name.removeprefix("node"))
        for folder in system.glob("node/node[0-9]*")
        for cpu in _numbers(_text(folder / "cpulist"))
    }
    cores: dict[tuple[int, str, str], list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = system / "cpu" / f"cpu{cpu}" / "topology"
        core = _text(topology / "core_id") or f"cpu{cpu}"
        name = (nodes.get(cpu, 0), _text(topology / "physical_package_id"), core)
        cores.setdefault(name, []).append(cpu)
    return [tuple(cores[name]) for name in sorted(cores, key=lambda name: (name[0], cores[name]))]


def shared_out(cores: Sequence[Core], workers: int) -> list[list[int]] | None:
    """The processors for the threads of each worker, no core for two; None where there are fewer than workers.

    As vLLM does for one worker on each NUMA node: one processor of each core, and of several cores the last is left
    to the process that schedules.
    """
    if len(cores) < workers:
        cores = [(cpu,) for core in cores for cpu in core]
    if len(cores) < workers:
        return None
    bounds = [index * len(cores) // workers for index in range(workers + 1)]
    parts = [cores[start:end] for start, end in pairwise(bounds)]
    return [[core[-1] for core in (part[:-1] or part)] for part in parts]


def _numbers(listed: str) -> list[int]:
    """Of ``0-3,8``."""
    found: list[int] = []
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text().strip()
    return ""
