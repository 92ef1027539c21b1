"""The steps of benchmarks/gpu_check.py: none harms another, no time is overdrawn, no process or row is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.processes import process_exists
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]

# Steps of few lines. Each is run as run_steps runs one, in a process of its own.
STEP = """
import os, subprocess, sys, time
from pathlib import Path
from step_runner import Rows
rows, folder = Rows(int(sys.argv[-1])), Path(sys.argv[1])
def leave_process_behind():
    code = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    left = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    (folder / "left").write_bytes(left.stdout.readline())
"""
STEPS = {
    "good": 'rows.add("figure", "1 | 2")',
    "fails": '(folder / "run.log").write_text("cause\\n"); rows.add("half", "way"); rows.fail("no luck"); sys.exit(1)',
    "dies": "os._exit(3)",
    "hangs": 'leave_process_behind(); rows.add("first", "figure"); time.sleep(60)',
}
RUN = """
import sys
from pathlib import Path
from step_runner import Step, Table, ended_by_signals, run_steps
STEP, STEPS = {step!r}, {steps!r}
folder = Path(sys.argv[1])
def step(name, needs_s=0, limit_s=20):
    return Step(name, [sys.executable, "-c", STEP + STEPS[name], str(folder)], needs_s, limit_s)
with ended_by_signals():
    run_steps([{calls}], Table(folder / "table.md", ["# Title"]), {budget_s}, folder)
"""


def begin(folder: Path, *calls: str, budget_s: float = 60) -> subprocess.Popen[str]:
    code = RUN.format(step=STEP, steps=STEPS, calls=", ".join(calls), budget_s=budget_s)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'benchmarks'}:{REPOSITORY}"}


def rows(folder: Path) -> list[str]:
    """Of the table; seconds, which depend on the machine, are left out."""
    lines = (folder / "table.md").read_text().splitlines()[4:]
    return [re.sub(r"\d+ s\b", "N s", line) for line in lines]


def test_a_step_that_fails_says_why_and_the_others_run(tmp_path: Path) -> None:
    script = begin(tmp_path, 'step("fails")', 'step("dies")', 'step("good")')
    printed, _ = script.communicate(timeout=30)
    assert script.returncode == 0
    assert rows(tmp_path) == [
        "| fails | half | way |",
        "| fails | failed | no luck (N s) |",
        "| dies | failed | ended with status 3 (N s) |",
        "| good | figure | 1 \\| 2 |",
    ]
    assert "/run.log\n" in printed
    assert "\ncause\n" in printed
    assert "| good | figure | 1 \\| 2 |\n" in printed


def test_a_step_that_hangs_is_ended_with_all_below_it(tmp_path: Path) -> None:
    script = begin(tmp_path, 'step("hangs", limit_s=3)', 'step("good")')
    script.communicate(timeout=30)
    assert rows(tmp_path) == [
        "| hangs | first | figure |",
        "| hangs | failed | not done within N s (N s) |",
        "| good | figure | 1 \\| 2 |",
    ]
    assert not process_exists(int((tmp_path / "left").read_text()))


def test_no_step_is_begun_without_the_time_it_needs(tmp_path: Path) -> None:
    began = time.monotonic()
    script = begin(tmp_path, 'step("hangs", needs_s=1)', 'step("good", needs_s=1)', budget_s=12)
    script.communicate(timeout=30)
    assert time.monotonic() - began < 12, "the time to end what hangs is kept back"
    assert rows(tmp_path)[-2:] == [
        "| hangs | failed | not done within N s (N s) |",
        "| good | skipped | N s of the time are left, it is not begun with less than 1 |",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_rows_and_no_process(tmp_path: Path, number: signal.Signals) -> None:
    script = begin(tmp_path, 'step("good")', 'step("hangs")')
    wait_until(lambda: (tmp_path / "table.md").exists() and len(rows(tmp_path)) == 2, 20, "the first figures")
    os.kill(script.pid, number)
    script.communicate(timeout=20)
    assert script.returncode == 128 + number
    assert rows(tmp_path) == [
        "| good | figure | 1 \\| 2 |",
        "| hangs | first | figure |",
        "| hangs | cut off | by a signal after N s |",
    ]
    assert not process_exists(int((tmp_path / "left").read_text()))


def test_every_step_of_gpu_check_is_there_and_imports_no_framework() -> None:
    code = (
        "import importlib, sys, gpu_check\n"
        "for name, (module, *_) in gpu_check.STEPS.items():\n"
        "    assert callable(getattr(importlib.import_module(module), name)), name\n"
        "print({name.partition('.')[0] for name in sys.modules}"
        " & {'langchain_core', 'llama_index', 'matplotlib', 'torch', 'vllm'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "set()\n"
