"""Process groups, on real processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from shared_engine.machine.proc import (
    cpu_seconds,
    exit_in_words,
    group_members,
    is_runnable,
    shared_files,
    waited_seconds,
)
from shared_engine.machine.process_group import PR_SET_CHILD_SUBREAPER, adopt_orphans, end_group, group_exists
from shared_engine.runtime.files import remove_files
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(30)
Run = Callable[[str], "subprocess.Popen[str]"]

TWO = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.{0})
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.{1})
    print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run() -> Iterator[Run]:
    """Python code in a group of its own; returns when it has printed a line.

    Orphans are this process's meanwhile, as they are a supervisor's: who collects them else may take seconds.
    """
    adopt_orphans()
    made: list[subprocess.Popen[str]] = []

    def run_code(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
        made.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield run_code
    for process in made:
        asyncio.run(end_group(process.pid, 0))
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def end(process: subprocess.Popen[str], grace_s: float) -> float:
    """Seconds it took."""
    began = time.monotonic()
    assert asyncio.run(end_group(process.pid, grace_s))
    assert not group_exists(process.pid)
    assert group_members(process.pid) == []
    return time.monotonic() - began


def test_a_group_that_listens_ends_at_once(run: Run) -> None:
    process = run(TWO.format("SIG_DFL", "SIG_DFL"))
    assert len(group_members(process.pid)) == 2
    assert end(process, 10) < 5


@pytest.mark.slow
@pytest.mark.parametrize("who", [("SIG_IGN", "SIG_IGN"), ("SIG_DFL", "SIG_IGN")], ids=["both", "the_child"])
def test_a_group_that_ignores_sigterm_is_killed_when_its_time_is_over(run: Run, who: tuple[str, str]) -> None:
    assert 0.3 <= end(run(TWO.format(*who)), 0.3) < 5


def test_without_grace_it_is_killed(run: Run) -> None:
    assert end(run(TWO.format("SIG_IGN", "SIG_IGN")), 0) < 5


def test_what_does_not_exist_has_ended() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert asyncio.run(end_group(gone.pid, 0))
    assert cpu_seconds([gone.pid]) == 0
    assert shared_files([gone.pid]) == ()


@pytest.mark.slow
def test_processor_time_is_counted_over_processes(run: Run) -> None:
    idle = run("import time; print(flush=True); time.sleep(60)")
    busy = run("print(flush=True)\nwhile True: pass")
    before = cpu_seconds([idle.pid])
    wait_until(lambda: cpu_seconds([idle.pid, busy.pid]) > before + 0.3, 10, "the processor time")
    assert cpu_seconds([idle.pid]) < before + 0.1


@pytest.mark.slow
def test_time_without_a_processor_is_counted_over_threads_and_processes(run: Run) -> None:
    idle = run("import time; print(flush=True); time.sleep(60)")
    cpu = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, [{cpu}])\nprint(flush=True)\nwhile True: pass"
    two = [run(spin).pid, run(spin).pid]  # on one processor: one of them always waits
    before = waited_seconds(two)
    wait_until(lambda: waited_seconds(two) > before + 0.3, 20, "them to have waited")
    assert waited_seconds([idle.pid]) < 5
    assert waited_seconds([1 << 30]) == 0


SHARED = """
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=4096)
import os, time
os.write(1, memory._name.encode() + b"\\n")
time.sleep(60)
"""


def test_shared_memory_is_found_while_it_is_mapped_and_removed(run: Run) -> None:
    before = set(os.listdir("/dev/shm"))
    process = run(SHARED)
    (name,) = (each for each in set(os.listdir("/dev/shm")) - before if each in str(shared_files([process.pid])))
    assert shared_files([process.pid]) == (f"/dev/shm/{name}",)
    assert shared_files([os.getpid()]) == ()
    asyncio.run(end_group(process.pid, 0))
    remove_files([f"/dev/shm/{name}", "/dev/shm/psm_none"])
    assert not os.path.exists(f"/dev/shm/{name}")


def test_shared_memory_without_a_name_is_nobodys(run: Run) -> None:
    process = run(SHARED.replace("os.write", "memory.unlink(); os.write"))
    assert shared_files([process.pid]) == ()


def test_a_thread_that_runs_is_runnable_and_one_that_sleeps_is_not(run: Run) -> None:
    spinning = run('print("up", flush=True)\nwhile True: pass')
    sleeping = run('import time; print("up", flush=True); time.sleep(60)')
    assert is_runnable([sleeping.pid, spinning.pid])
    wait_until(lambda: not is_runnable([sleeping.pid]), 10, "it to sleep")
    assert not is_runnable([0])


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "ended with exit code 0"),
        (1, "ended with exit code 1"),
        (-9, "was killed by SIGKILL (from outside, or by the kernel when memory ran out)"),
        (-15, "was killed by SIGTERM (from outside)"),
        (-11, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_an_end_in_words_names_the_signal(returncode: int, words: str) -> None:
    assert exit_in_words(returncode) == words
