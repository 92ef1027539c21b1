"""Real vLLM on the CPU, one engine at a time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from tests.conftest import REPOSITORY, ended_engines, process_exists

_seeds = itertools.count(1000)


def _makes_engines(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    with ended_engines() as made:

        def make(**settings: Any) -> Engine:
            # vLLM's seed has no effect on greedy answers, and makes the key another one.
            made.append(Engine(**{**tiny_chat, "seed": next(_seeds), **settings}))
            return made[-1]

        yield make


@pytest.fixture
def own_engine(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    """Makes engines that no other test has; they are gone when the test ends."""
    yield from _makes_engines(tiny_chat)


@pytest.fixture(scope="module")
def module_engine(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    """The same for all tests of a file."""
    yield from _makes_engines(tiny_chat)


def processes_of_group(pgid: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == pgid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def all_processes(engine: Engine) -> list[int]:
    """Supervisor, launcher, and the server's whole group."""
    status = engine.status()
    assert status.supervisor_pid is not None
    children = Path(f"/proc/{status.supervisor_pid}/task/{status.supervisor_pid}/children").read_text().split()
    group = processes_of_group(status.server_pid) if status.server_pid else []
    return [status.supervisor_pid, *map(int, children), *group]


def any_exists(pids: list[int]) -> bool:
    return any(process_exists(pid) for pid in pids)


def run_app(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another app: a Python process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
