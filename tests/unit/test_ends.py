"""Whether the end of a process is the engine's own doing."""

from __future__ import annotations

import pytest

from shared_engine.runtime.launcher_messages import ChildEnded, child_ended_line
from shared_engine.supervisor.ends import End, Exit, end_of, exit_reported, first_exit

CORE, SERVER = "vLLM's EngineCore", "vLLM"


@pytest.mark.parametrize(
    ("exit", "log", "memory_ran_out", "end"),
    [
        (Exit(CORE, -9), [], False, End(f"{CORE} was killed by SIGKILL (from outside)", is_from_outside=True)),
        (
            Exit(CORE, -9),
            [],
            True,
            End(f"{CORE} was killed by SIGKILL (by the kernel when memory ran out)", lacked_memory=True),
        ),
        (Exit(CORE, -15), [], True, End(f"{CORE} was killed by SIGTERM (from outside)")),
        (Exit(CORE, -15), [], False, End(f"{CORE} was killed by SIGTERM (from outside)", is_from_outside=True)),
        (Exit(CORE, -2), [], False, End(f"{CORE} was killed by SIGINT (from outside)", is_from_outside=True)),
        (Exit(CORE, -1), [], False, End(f"{CORE} was killed by SIGHUP (from outside)", is_from_outside=True)),
        (Exit(CORE, -11), [], False, End(f"{CORE} was killed by SIGSEGV")),
        (Exit(CORE, -6), [], False, End(f"{CORE} was killed by SIGABRT")),
        (Exit(CORE, 1), [], False, End(f"{CORE} ended with exit code 1")),
        (Exit(CORE, None), [], False, End(f"{CORE} ended")),
        # A process of vLLM that is sent SIGTERM or SIGINT exits with 0; so does a worker that fails.
        (Exit(CORE, 0), ["all is well"], False, End(f"{CORE} ended with exit code 0", is_from_outside=True)),
        (Exit("vLLM's Worker", 0), ["WorkerProc failed."], False, End("vLLM's Worker ended with exit code 0")),
        (Exit(CORE, 0), ["EngineCore encountered a fatal error."], False, End(f"{CORE} ended with exit code 0")),
        (Exit(SERVER, 0, is_leader=True), [], False, End(f"{SERVER} ended with exit code 0")),
        (Exit(SERVER, -9, is_leader=True), [], False, End("vLLM was killed by SIGKILL (from outside)", True)),
    ],
)
def test_end(exit: Exit, log: list[str], memory_ran_out: bool, end: End) -> None:
    assert end_of(exit, log, memory_ran_out=memory_ran_out) == end


def test_what_the_launcher_s_hook_has_written_is_read_among_other_lines() -> None:
    ended = [ChildEnded("VllmWorker-0", 12, -9), ChildEnded("Engine Core", 11, 1)]
    log = ["INFO 1", *(child_ended_line(each).decode().rstrip() for each in ended), "vllm-local: something else"]
    assert first_exit(log) == Exit("vLLM's VllmWorker-0", -9)
    assert exit_reported(log, 11) == 1
    assert exit_reported(log, 13) is None
    assert first_exit(["INFO 1"]) is None
