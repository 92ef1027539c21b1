"""results/history.csv: one line for each whole run, so that a figure that has become worse shows."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from figures import Row

HERE = Path(__file__).resolve().parent
FILE = HERE / "results" / "history.csv"
RUN = ("date", "commit", "machine", "vllm", "rounds")


def add_line(file: Path, run: Mapping[str, str], rows: Iterable[Row]) -> None:
    """Add a run: what it ran on, and what each row compares.

    Rows that earlier runs did not have become columns at the end, empty in earlier lines.

    Args:
        run: has a value for each of RUN.
    """
    lines = read(file)
    line = {name: run[name] for name in RUN}
    for row in rows:
        of = f" of {row.against}" if row.against else ""
        unit = "x" if row.kind.startswith("times") else row.unit
        line[f"{row.measure}{of} ({unit})"] = f"{row.result:.4g}"
    columns = list(dict.fromkeys(name for each in [*lines, line] for name in each))
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*lines, line])


def read(file: Path = FILE) -> list[dict[str, str]]:
    """All runs, the oldest first."""
    if not file.exists():
        return []
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def commit() -> str:
    """Of the working tree; with a ``+`` where that has changes, but for results."""
    git = ["git", "-C", str(HERE)]
    short = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return short.stdout.strip() + ("+" if changed.stdout.strip() else "")


def today() -> str:
    return time.strftime("%Y-%m-%d")
