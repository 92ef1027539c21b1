"""How a process of an engine has ended, and whether that was the engine's own doing. Pure.

It decides what becomes of the requests that had no answer yet: one that makes vLLM fail must not do so again and again,
but an engine that somebody else has ended is started again for them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass

from shared_engine.machine.proc import FROM_OUTSIDE, exit_in_words
from shared_engine.runtime.launcher_messages import read_child_ended

# vLLM's words for a process that fails by itself; it may then end with exit code 0.
FAILED_BY_ITSELF = ("EngineCore encountered a fatal error", "EngineCore failed to start", "WorkerProc failed")


@dataclass(frozen=True)
class Exit:
    """The end of one process.

    Attributes:
        name: in words, such as ``vLLM's EngineCore``.
        returncode: minus the number of the signal, where one has ended it; None where it is not known.
        is_leader: it is the API server, which ends with 0 whatever is the matter with the others.
    """

    name: str
    returncode: int | None
    is_leader: bool = False


@dataclass(frozen=True)
class End:
    """The end of a server.

    Attributes:
        words: what has ended, and how.
        is_from_outside: somebody else has ended it, or one of its processes.
        lacked_memory: the kernel has, as memory ran out.
    """

    words: str
    is_from_outside: bool = False
    lacked_memory: bool = False


def end_of(exit: Exit, log: Iterable[str], *, memory_ran_out: bool) -> End:
    """What the end of the process that ended first means.

    Args:
        log: vLLM's lines since the start.
        memory_ran_out: the kernel has killed processes for that since the start.
    """
    words = f"{exit.name} {exit_in_words(exit.returncode, memory_ran_out=memory_ran_out)}"
    if exit.returncode is None or exit.returncode > 0 or (exit.returncode == 0 and exit.is_leader):
        return End(words)
    if exit.returncode < 0:
        is_for_memory = memory_ran_out and -exit.returncode == signal.SIGKILL
        return End(words, -exit.returncode in FROM_OUTSIDE and not memory_ran_out, is_for_memory)
    # vLLM's handlers of SIGTERM and SIGINT end a process so.
    return End(words, not any(mark in line for line in log for mark in FAILED_BY_ITSELF))


def first_exit(log: Iterable[str]) -> Exit | None:
    """Of the processes that vLLM has started, by what the launcher's hook has written; None where none has ended."""
    ended = next((ended for line in log if (ended := read_child_ended(line)) is not None), None)
    return None if ended is None else Exit(f"vLLM's {ended.name}", ended.returncode)


def exit_reported(log: Iterable[str], pid: int) -> int | None:
    """The exit code of one process, by what the launcher's hook has written."""
    codes = [ended.returncode for line in log if (ended := read_child_ended(line)) is not None and ended.pid == pid]
    return codes[-1] if codes else None
