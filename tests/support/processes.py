"""Processes as the kernel shows them: who lives, whose child is whose, what belongs to an engine; and apps to run.

Read here on their own, not with the product's functions, which are what is tested.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared_engine import Engine
from tests.support.paths import REPOSITORY
from tests.support.waiting import POLL_S

PRESS_AGAIN_S = 5.0
APPS = REPOSITORY / "tests" / "support" / "apps"


def stat_of(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent and process group; None for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[2])


def process_exists(pid: int) -> bool:
    """True for a running process; not for a zombie."""
    stat = stat_of(pid)
    return stat is not None and stat[0] != "Z"


def any_exists(pids: Iterable[int]) -> bool:
    return any(process_exists(pid) for pid in pids)


def wait_gone(pids: Iterable[int], timeout_s: float) -> int:
    """How many of the processes are still there after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    left = list(pids)
    while (left := [pid for pid in left if process_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return len(left)


def parent_of(pid: int) -> int:
    stat = stat_of(pid)
    assert stat is not None, f"process {pid} has ended"
    return stat[1]


def processes_of_group(pgid: int) -> list[int]:
    """Living processes of a process group."""
    stats = ((int(entry.name), stat_of(int(entry.name))) for entry in Path("/proc").glob("[0-9]*"))
    return [pid for pid, stat in stats if stat is not None and stat[2] == pgid and stat[0] != "Z"]


def all_processes(engine: Engine) -> list[int]:
    """Supervisor, launcher, and the server's whole group."""
    status = engine.status()
    assert status.supervisor_pid is not None
    children = Path(f"/proc/{status.supervisor_pid}/task/{status.supervisor_pid}/children").read_text().split()
    group = processes_of_group(status.server_pid) if status.server_pid else []
    return [status.supervisor_pid, *map(int, children), *group]


def run_app(name: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """One of tests/support/apps/, a process of its own."""
    return run_code((APPS / f"{name}.py").read_text(), *arguments, stdin=stdin)


def run_code(code: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def end_of(app: subprocess.Popen[str], timeout_s: float = 30.0) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; an app that hangs is killed, and its status tells."""
    try:
        out, err = app.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        app.kill()
        out, err = app.communicate()
    return app.returncode, out, err


def press_ctrl_c_until_back(app: subprocess.Popen[str]) -> float:
    """Seconds until the app says that it is back, by the last signal.

    Python drops one that lands where exceptions are ignored, as in a weak reference's callback: people press again.
    """
    assert app.stdout
    with ThreadPoolExecutor(1) as pool:
        line = pool.submit(app.stdout.readline)
        for _ in range(5):
            app.send_signal(signal.SIGINT)
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                assert line.result(PRESS_AGAIN_S) == "back\n"
                break
    return time.monotonic() - began
