"""What only a GPU can show, in one run of at most eight minutes on a machine without a network.

    python benchmarks/gpu_check.py [--cpu] [--budget-s S] [--steps NAME,NAME] [--out FILE]

Needs an NVIDIA GPU, a Python with vLLM (VLLM_PYTHON names it, else the usual one is found) and, in the Python that runs
this, vllm-local's own dependencies; no framework, no model from the hub. Each figure is printed and written to
benchmarks/results/gpu.md as soon as it is known, the most telling first. A step that fails, or for which no time is
left, says so there, and the next one runs. Nothing is left running, also after SIGTERM or Ctrl-C.

``--cpu`` rehearses the same steps at smaller sizes on vLLM's CPU build, and writes gpu_rehearsal.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # not installed where there is no network

NEEDED = ("aiohttp", "httptools", "msgspec", "pydantic", "tqdm")  # of pyproject.toml

# A function and its module: not begun with less than so many seconds left, and ended after so many. A plan: nobody has
# measured on a GPU yet how long they take.
STEPS: dict[str, tuple[str, float, float]] = {
    "machine": ("gpu_life", 10, 60),
    "plain_start": ("gpu_life", 30, 100),
    "forked_start": ("gpu_life", 25, 70),
    "compiled": ("gpu_life", 50, 170),
    "sleep": ("gpu_life", 20, 60),
    "swap": ("gpu_life", 30, 90),
    "batches": ("gpu_batches", 35, 100),
    "calls": ("gpu_batches", 20, 60),
    "batches_1b": ("gpu_batches", 40, 120),
    "kills": ("gpu_kills", 30, 120),
    "serve_uncompiled": ("gpu_life", 40, 100),
}
BUDGET_S = 460.0
# Should this script be killed hard, its engines leave soon by themselves.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_IDLE_TTL_SECONDS": "120",
    "VLLM_STANDBY_TTL_SECONDS": "120",
    "VLLM_SHOW_PROGRESS": "false",
}
SLOWER_ON_CPU = 4


def main() -> int:
    arguments = parse(sys.argv[1:])
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{sys.executable} lacks {', '.join(missing)}: carry the wheels along, and install them for it")
        return 2
    return run_step(arguments) if arguments.step else run_all(arguments)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU build")
    parser.add_argument("--budget-s", type=float, help=f"for all together (default {BUDGET_S:g}; on a CPU 1200)")
    parser.add_argument("--steps", default=",".join(STEPS), help="only these, such as swap,kills")
    parser.add_argument("--out", type=Path, help="the table (default benchmarks/results/gpu.md)")
    for hidden in ("--step", "--folder", "--rows-fd"):  # how this script runs each step, in a process of its own
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.steps = [name.strip() for name in arguments.steps.split(",")]
    if unknown := [name for name in arguments.steps if name not in STEPS]:
        parser.error(f"--steps: {', '.join(unknown)} is not one of {', '.join(STEPS)}")
    return arguments


def run_all(arguments: argparse.Namespace) -> int:
    from device_memory import gpu_name, used_mib
    from step_runner import Step, Table, descendants, ended_by_signals, run_steps

    from shared_engine.errors import VLLMError
    from shared_engine.launch.interpreter import find_interpreter
    from shared_engine.runtime.directory import ROOT_VARIABLE

    is_cpu: bool = arguments.cpu
    device = "a CPU: a rehearsal, its figures mean nothing" if is_cpu else gpu_name()
    if device is None:
        print("no NVIDIA GPU here: neither NVML nor nvidia-smi shows one. --cpu rehearses on a CPU build")
        return 2
    try:
        vllm = find_interpreter(os.environ.get("VLLM_PYTHON"))
    except VLLMError as exc:
        print(exc)
        return 2
    began = time.monotonic()
    title = "# Rehearsal of gpu_check.py" if is_cpu else "# On a GPU"
    head = [title, "", f"One run of `python benchmarks/gpu_check.py` on {device}; vLLM {vllm.version}."]
    default = HERE / "results" / ("gpu_rehearsal.md" if is_cpu else "gpu.md")
    table = Table(arguments.out or default, head)
    folder = Path(tempfile.mkdtemp(prefix="vlg-", dir="/tmp"))
    os.environ |= {ROOT_VARIABLE: str(folder / "run"), "VLLM_PYTHON": vllm.path, **ENVIRONMENT}
    factor = SLOWER_ON_CPU if is_cpu else 1
    options = ["--folder", str(folder), *(["--cpu"] if is_cpu else [])]
    steps = [
        Step(
            name.replace("_", " "),
            [sys.executable, "-u", __file__, "--step", name, *options],
            needs_s,
            limit_s * factor,
        )
        for name, (_, needs_s, limit_s) in STEPS.items()
        if name in arguments.steps
    ]
    before = used_mib(is_cpu)
    try:
        with ended_by_signals():
            try:
                run_steps(steps, table, arguments.budget_s or (1200 if is_cpu else BUDGET_S), folder)
            finally:
                table.add("end", "processes left", str(len(descendants())))
                if not is_cpu:
                    table.add("end", "GPU memory against the beginning", f"{used_mib(is_cpu) - before:+,} MiB")
                table.add("end", "seconds in all", f"{time.monotonic() - began:.0f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def run_step(arguments: argparse.Namespace) -> int:
    """In a process of its own."""
    from gpu_run import Run
    from step_runner import Rows

    rows = Rows(int(arguments.rows_fd))
    try:
        module = importlib.import_module(STEPS[arguments.step][0])
        getattr(module, arguments.step)(Run(arguments.cpu, Path(arguments.folder), rows))
    except BaseException as exc:  # SystemExit too, by which the helpers say that a peer does not run
        traceback.print_exc()
        lines = [line[:200] for line in str(exc).splitlines()] or [""]
        rows.fail(f"{type(exc).__name__}: {lines[0]}{f' ... {lines[-1]}' if lines[1:] else ''}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
