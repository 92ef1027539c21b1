"""Runs steps one after another within a time budget, each in a process of its own, and keeps their table.

A step that fails, hangs or has no time left costs the others nothing: it has a deadline, its reason stands in the
table, and all processes below it are ended. Rows are printed and written when they come, so a cut at any moment loses
none. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared_engine.machine.proc import living_processes
from shared_engine.machine.process_group import adopt_orphans, reap_children
from shared_engine.runtime.files import write_atomically

TERM_GRACE_S, KILL_GRACE_S = 8.0, 2.0
CLEAN_UP_S = TERM_GRACE_S + KILL_GRACE_S
POLL_S = 0.05
LOGS, LOG_LINES, LOG_WIDTH = 2, 15, 200


@dataclass(frozen=True)
class Step:
    """Something to measure.

    Attributes:
        command: runs it; ``--rows-fd N`` is added, the pipe to which its ``Rows`` go.
        needs_s: it is not begun when less is left.
        limit_s: it is ended after that.
    """

    name: str
    command: Sequence[str]
    needs_s: float
    limit_s: float


class Rows:
    """Where a step's own process tells what it has found."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # its end must show when the step ends, not when what it has started does
        self._fd = fd

    def add(self, measure: str, result: str) -> None:
        self._write([measure, result])

    def fail(self, reason: str) -> None:
        """Why this step ends early."""
        self._write(["failed", reason])

    def _write(self, row: list[str]) -> None:
        os.write(self._fd, json.dumps(row).encode() + b"\n")


class Table:
    """A Markdown file that is whole after each row.

    Args:
        head: lines above the table.
    """

    def __init__(self, path: Path, head: Sequence[str]) -> None:
        self._path = path
        self._lines = [*head, "", "| step | measure | result |", "|---|---|---|"]
        path.parent.mkdir(parents=True, exist_ok=True)
        print("\n".join(self._lines[-2:]), flush=True)
        self._write()

    def add(self, step: str, measure: str, result: str) -> None:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in (step, measure, result))
        self._lines.append(f"| {' | '.join(cells)} |")
        print(self._lines[-1], flush=True)
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, "\n".join([*self._lines, ""]))


def run_steps(steps: Sequence[Step], table: Table, budget_s: float, logs: Path) -> None:
    """Run each step that the time is left for. Returns, or raises, when no process of theirs is left.

    Args:
        logs: folder whose ``*.log`` files are searched for the last lines when a step fails.
    """
    adopt_orphans()
    ends = time.monotonic() + budget_s
    try:
        for step in steps:
            left = ends - time.monotonic() - CLEAN_UP_S
            if left < step.needs_s:
                why = f"{max(left, 0):.0f} s of the time are left, it is not begun with less than {step.needs_s:g}"
                table.add(step.name, "skipped", why)
                continue
            began = time.monotonic()
            try:
                reason = _run(step, table, min(left, step.limit_s))
            except SystemExit:
                table.add(step.name, "cut off", f"by a signal after {time.monotonic() - began:.0f} s")
                raise
            if reason is not None:
                table.add(step.name, "failed", f"{reason} ({time.monotonic() - began:.0f} s)")
                _print_last_lines(logs)
    finally:
        end_descendants()  # a signal may have come while a step's own were ended


def _run(step: Step, table: Table, limit_s: float) -> str | None:
    """Why it failed; None if it is done."""
    began = time.monotonic()
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb", buffering=0) as rows:
        try:
            process = subprocess.Popen(
                [*step.command, "--rows-fd", str(write_fd)],
                pass_fds=(write_fd,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the step
            )
        finally:
            os.close(write_fd)
        try:
            return _follow(process, rows.fileno(), step, table, began + limit_s)
        finally:
            if left := end_descendants():
                table.add(step.name, "processes that could not be ended", str(left))


def _follow(process: subprocess.Popen[bytes], rows_fd: int, step: Step, table: Table, ends: float) -> str | None:
    failure: str | None = None
    pending = b""
    began = time.monotonic()
    while True:
        _reap_orphans(process.pid)
        if time.monotonic() > ends:
            return f"not done within {ends - began:.0f} s"
        if not select.select([rows_fd], [], [], POLL_S)[0]:
            continue
        data = os.read(rows_fd, 1 << 16)
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            measure, result = json.loads(line)
            if measure == "failed":
                failure = result
            else:
                table.add(step.name, measure, result)
        if not data:
            break
    try:
        code = process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"not done within {ends - began:.0f} s"
    return failure if failure is not None or code == 0 else f"ended with status {code}"


def _reap_orphans(step_pid: int) -> None:
    """Collect what the step left to us: a killed group is gone only when it is collected."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == step_pid:
                return
            os.waitpid(ended.si_pid, 0)


def descendants() -> set[int]:
    """Living processes below this one."""
    parents = {stat.pid: stat.parent for stat in living_processes()}
    below: set[int] = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {os.getpid()}


def end_descendants() -> int:
    """SIGTERM to each process below this one, then SIGKILL; how many are left all the same."""
    for number, patience_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
        until = time.monotonic() + patience_s
        told: set[int] = set()
        while time.monotonic() < until:
            left = descendants()
            for pid in left - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            told |= left
            reap_children()
            if not left:
                return 0
            time.sleep(POLL_S)
    return len(descendants())


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The first SIGTERM or SIGINT ends what is inside, with SystemExit; the following ones do not disturb its end."""

    def leave(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_last_lines(folder: Path) -> None:
    """Of the logs below ``folder`` that were written to last."""
    for log in sorted(folder.rglob("*.log"), key=lambda file: file.stat().st_mtime)[-LOGS:]:
        print(f"--- the last lines of {log.parent.name}/{log.name}")
        lines = [line[:LOG_WIDTH] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        print("\n".join(lines[-LOG_LINES:]), flush=True)
