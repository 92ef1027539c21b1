"""vLLM's processes as children of the app: begun without running the app's script again, and gone with the app.

vLLM picks how its processes start in one place, ``get_mp_context``. Forking an app is unsafe (its threads, its CUDA),
and Python's spawn runs the app's script again in each child, which takes an ``if __name__ == "__main__"`` around it.
So: spawned, without the script. What a child imports of vLLM is forked further where the launcher does that too.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from shared_engine.launcher.compile_cache import use_safe_cache
from shared_engine.launcher.compiler import compile_refusal, switch_compiler_off
from shared_engine.launcher.log import take_level
from shared_engine.launcher.preload import import_vllm
from shared_engine.launcher.process import (
    allow_amx,
    die_with_parent,
    print_stack_when_asked,
    report_ends_of_children,
)
from shared_engine.launcher.replacing import replace_everywhere
from shared_engine.launcher.vllm_build import is_cpu_build
from shared_engine.machine.proc import group_members, shared_files
from shared_engine.machine.process_group import GIVE_UP_S, group_exists, signal_group

POLL_S = 0.01
SPAWN_VARIABLE = "VLLM_WORKER_MULTIPROC_METHOD"


@dataclass(frozen=True)
class Birth:
    """What a child does before it imports vLLM.

    Attributes:
        parent: its PID; a child that finds another one is an orphan already.
        log: file for its output.
        unset: environment variables that are the app's alone.
        environment: what is set in their place.
        is_leader: it leads a session of its own, so that a terminal's Ctrl-C is for the app alone.
    """

    parent: int
    log: str
    unset: tuple[str, ...]
    environment: Mapping[str, str]
    is_leader: bool = True


class Children:
    """The processes that vLLM starts while this is the current one of the running context."""

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.processes: list[EngineProcess] = []
        self._shared: tuple[str, ...] = ()

    @property
    def pids(self) -> list[int]:
        """Of those that were started; each leads a process group."""
        return [process.pid for process in self.processes if process.pid is not None]

    def enter(self) -> None:
        """From now on the context's processes belong here."""
        _current.set(self)

    def end(self, grace_s: float) -> bool:
        """Return when all of them, and all below them, are gone; False where the kernel holds one."""
        pids = self.pids
        kill_at = time.monotonic() + grace_s
        if grace_s > 0:
            for pid in pids:
                signal_group(pid, signal.SIGTERM)
        while True:
            for process in self.processes:
                process.is_alive()  # reaps it
            left = [pid for pid in pids if group_exists(pid)]
            now = time.monotonic()
            if not left or now > kill_at + GIVE_UP_S:
                return not left
            if now >= kill_at:
                for pid in left:
                    signal_group(pid, signal.SIGKILL)
            time.sleep(POLL_S)

    def note_shared_memory(self) -> None:
        """Remember what a killed process would leave behind."""
        self._shared = shared_files(pid for leader in self.pids for pid in group_members(leader))

    def remove_shared_memory(self) -> None:
        """Of processes that are gone. Python's tracker would remove its own with the app only, and warn."""
        for file in map(Path, self._shared):
            is_pythons = file.name.startswith("psm_")
            if not (is_pythons or "-cpushm_" in file.name) or not file.exists():
                continue
            file.unlink(missing_ok=True)
            if is_pythons:
                resource_tracker.unregister(f"/{file.name}", "shared_memory")

    def forget_in_child(self) -> None:
        """After a fork of the app, in the child: Python must neither end nor wait for the parent's processes."""
        for process in self.processes:
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


_current: ContextVar[Children | None] = ContextVar("vllm_local_children", default=None)


class EngineProcess(multiprocessing.context.SpawnProcess):
    """A process of vLLM's. Also of one that was begun like this: EngineCore's workers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        children = _current.get()
        assert children is not None
        self.birth = children.birth
        children.processes.append(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is unpickled first is called first: before the arguments are, which import vLLM.
        return _born, (type(self), replace(self.birth, parent=os.getpid())), self.__dict__

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        with _without_script():
            return multiprocessing.context.SpawnProcess._Popen(process_obj)


class EngineContext(multiprocessing.context.SpawnContext):
    """What vLLM gets in place of one of Python's contexts."""

    Process = EngineProcess


_context = EngineContext()


def use_for_processes() -> None:
    """Have vLLM start its processes by ``EngineProcess`` where there are ``Children`` to keep them.

    What the app itself does with vLLM in this process stays as it is.
    """
    import vllm.utils.system_utils as system_utils

    pick = system_utils.get_mp_context
    if getattr(pick, "is_ours", False):
        return

    def get_mp_context() -> Any:
        return pick() if _current.get() is None else _context

    get_mp_context.is_ours = True  # type: ignore[attr-defined]
    replace_everywhere(pick, get_mp_context)


def _born(kind: type[EngineProcess], birth: Birth) -> EngineProcess:
    """The first thing that a child does, in its main thread; what it returns is then filled in."""
    if birth.is_leader:
        os.setsid()
    die_with_parent()
    if os.getppid() != birth.parent:
        os._exit(1)
    log = os.open(birth.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    take_level(os.environ)
    for name in birth.unset:
        os.environ.pop(name, None)
    os.environ.update(birth.environment)
    os.register_at_fork(after_in_child=die_with_parent)
    allow_amx()
    print_stack_when_asked()
    report_ends_of_children()
    use_safe_cache()
    Children(replace(birth, is_leader=False)).enter()
    _, refusal = import_vllm(with_server=False)
    if is_cpu_build() and compile_refusal() is not None:
        switch_compiler_off()
    if refusal is not None:
        os.environ.setdefault(SPAWN_VARIABLE, "spawn")
        use_for_processes()
    return kind.__new__(kind)


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """What this thread spawns does not run the app's script again; what other threads spawn does, as ever.

    And the app may still choose a start method of its own, which Python's function would fix.
    """
    ours, as_ever = threading.get_ident(), multiprocessing.spawn.get_preparation_data

    def preparation_data(name: str) -> dict[str, Any]:
        if threading.get_ident() != ours:
            return as_ever(name)
        return {
            "name": name,
            "authkey": multiprocessing.process.current_process().authkey,
            "sys_path": [entry or os.getcwd() for entry in sys.path],
            "sys_argv": sys.argv[:1],
            "start_method": "spawn",
        }

    multiprocessing.spawn.get_preparation_data = preparation_data
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = as_ever


def disown_finalizers() -> None:
    """After a fork of the app, in the child: vLLM's finalizers would end the parent's processes at the child's exit."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        found = finalizer.peek()
        if found is not None and str(getattr(found[1], "__module__", "")).startswith("vllm."):
            finalizer.detach()
