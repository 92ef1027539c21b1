"""An engine on the CPU lets others go first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shared_engine.machine.priority import NICE, give_way


def test_a_group_and_its_session_give_way() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.run(['cat'])"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as leader:
        give_way(leader.pid)
        assert os.getpriority(os.PRIO_PROCESS, leader.pid) == NICE
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
        autogroup = Path(f"/proc/{leader.pid}/autogroup")
        if autogroup.exists():
            assert autogroup.read_text().split()[-1] == str(NICE)


def test_one_that_has_ended_is_no_error() -> None:
    done = subprocess.Popen(["true"], start_new_session=True)
    done.wait()
    give_way(done.pid)
