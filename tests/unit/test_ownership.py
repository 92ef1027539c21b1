"""A supervisor whose lock file is gone ends, and takes its server along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.processes import process_exists
from tests.support.waiting import wait_until

OWNER = """
import os, subprocess, sys
from pathlib import Path
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.supervisor.ownership import Ownership
directory = RuntimeDir(Path(sys.argv[1]))
ownership = Ownership(directory, os.open(directory.lock, os.O_RDWR | os.O_CREAT))
server = subprocess.Popen(["sleep", "60"], process_group=0)
ownership.exit_if_lost(server.pid)
print(server.pid, flush=True)
sys.stdin.readline()
ownership.exit_if_lost(server.pid)
print("still here", flush=True)
server.kill()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "is_lost"),
    [
        (lambda lock: None, False),
        (lambda lock: lock.unlink(), True),
        (lambda lock: (lock.rename(lock.with_name("other")), lock.touch()), True),
    ],
    ids=["untouched", "removed", "replaced"],
)
def test_it_ends_only_when_its_lock_is_gone(tmp_path: Path, change: Callable[[Path], object], is_lost: bool) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-S", "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert owner.stdout is not None
    server = int(owner.stdout.readline())
    change(tmp_path / "supervisor.lock")
    out, _ = owner.communicate("\n", timeout=30)
    assert (owner.returncode, out) == (0, "" if is_lost else "still here\n")
    wait_until(lambda: not process_exists(server), 10, "the server to be gone")
