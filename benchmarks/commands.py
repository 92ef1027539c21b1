"""What the command costs before it does anything, beside Python itself. Writes benchmarks/results/commands.md.

Whole processes, in turns, in an empty runtime directory. ``make bench-commands`` runs it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROUNDS = int(os.environ.get("ROUNDS", "30"))
RESULTS = Path(os.environ.get("RESULTS", HERE / "results"))
_COMMAND = ("-m", "shared_engine.cli")
COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": ("-c", "pass"),
    "vllm-local --help": (*_COMMAND, "--help"),
    "vllm-local status": (*_COMMAND, "status"),
    "vllm-local ps": (*_COMMAND, "ps"),
    "vllm-local list": (*_COMMAND, "list"),
    "vllm-local config": (*_COMMAND, "config"),
    "vllm-local load --help": (*_COMMAND, "load", "--help"),
}


def times_of(commands: dict[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, in turns, so that a noisy minute falls on all of them."""
    taken: dict[str, list[float]] = {what: [] for what in commands}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "VLLM_LOCAL_RUNTIME_DIR": f"{folder}/engines", "HF_HOME": f"{folder}/hub"}
        for round_number in range(rounds + 1):
            for what, arguments in commands.items():
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True
                )
                if round_number > 0:  # the first fills the page cache
                    taken[what].append((time.perf_counter() - began) * 1000)
    return taken


def main() -> None:
    lines = ["| command | ms (median) | fastest |", "|---|---|---|"]
    for what, values in times_of(COMMANDS, ROUNDS).items():
        lines.append(f"| `{what}` | {statistics.median(values):.0f} | {min(values):.0f} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / "commands.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
