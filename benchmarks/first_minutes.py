"""A new user's first minutes beside `vllm serve` and ChatOpenAI. Writes benchmarks/results/first_minutes.md.

    python benchmarks/first_minutes.py        make bench-first-minutes

Each begins with an empty home, so without packages, pip's cache, or anything compiled, and types what its own
documentation says. Our wheels are built before the clock starts. In alternating order; ROUNDS. It takes 10 minutes a
round, port 8000, and the registry that pip is set up with.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from figures import say
from first_minutes_page import page
from first_steps import ANSWER, MODEL, OURS, PORT, STOP, THEIRS, VLLM, Found, Step, programs
from new_user import NewUser, Seen, UserError, left_running
from step_runner import end_descendants, ended_by_signals

from deploy.distributions.__main__ import build_all
from shared_engine.machine.process_group import adopt_orphans
from shared_engine.runtime.directory import ROOT_VARIABLE
from tests.support.paths import TINY_CHAT

ROUNDS = int(os.environ.get("ROUNDS", "2"))
RESULTS = Path(os.environ.get("RESULTS", HERE / "results"))


def walk(steps: Sequence[Step], user: NewUser, found: Found) -> None:
    """Type all lines, and note what was seen.

    Raises:
        UserError: a line failed, or gave no answer.
    """
    server = None
    for step in steps:
        if step.row == STOP:
            found.behind.append(left_running())
        if step.is_server:
            server = user.starts(step.runs or step.typed, PORT)
            seen = timed(server.wait_until_healthy)
        elif step.row == STOP and server is not None:
            seen = timed(server.interrupt)
        else:
            seen = user.types(step.runs or step.typed)
        if step.answers and ANSWER not in seen.text:
            raise UserError(f"{step.typed!r} did not answer:\n{seen.text}")
        found.seen.setdefault(step.row, []).append(seen)
        say(f"    {seen.total_s:7.2f} s  {step.typed}")
        for seconds, text in seen.lines if step.row == VLLM else ():
            say(f"               {seconds:7.1f} s  {text}")
    found.disk_gb.append(user.disk_gb())


def timed(action: Callable[[], None]) -> Seen:
    began = time.perf_counter()
    action()
    return Seen(None, time.perf_counter() - began)


def measure(folder: Path) -> dict[str, Found]:
    """Both contenders, ROUNDS times."""
    wheels = folder / "wheels"
    build_all(wheels)
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip()
    steps = {"ours": OURS, "theirs": THEIRS}
    found = {name: Found() for name in steps}
    for index in range(ROUNDS):
        for name in list(steps)[:: 1 if index % 2 == 0 else -1]:
            say(f"  round {index + 1} of {ROUNDS}: {name}")
            home = folder / "home"
            home.mkdir()
            user = NewUser(home, {"PIP_FIND_LINKS": links, ROOT_VARIABLE: str(folder / "engines")})
            shutil.copytree(TINY_CHAT, home / MODEL)
            (home / "app.py").write_text(programs()[name])
            try:
                walk(steps[name], user, found[name])
            finally:
                if left := end_descendants():
                    say(f"    {left} processes could not be ended")
                shutil.rmtree(home, ignore_errors=True)
                shutil.rmtree(folder / "engines", ignore_errors=True)
    return found


def main() -> int:
    adopt_orphans()
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fm-", dir="/tmp") as name:
        try:
            found = measure(Path(name))
        finally:
            end_descendants()
    text = page(found, ROUNDS)
    (RESULTS / "first_minutes.md").write_text(text)
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
