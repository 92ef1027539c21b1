"""The failure matrix as a table: what happens to requests, processes and files when something breaks.

Real vLLM where it can be made to show the fault, the fake one of tests/support/fake_vllm for the rest. Writes
benchmarks/results/faults.md. ``make bench-faults`` runs it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(tempfile.mkdtemp(prefix="vlf-", dir="/tmp"))
os.environ["VLLM_LOCAL_RUNTIME_DIR"] = str(ROOT / "run")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shared_engine import Engine, EngineStartError, VLLMError
from tests.support import failure_matrix as matrix
from tests.support.engines import copy_of_tiny_chat, settings_of
from tests.support.fake_vllm.environment import make_environment
from tests.support.processes import all_processes, run_app, wait_gone

HERE = Path(__file__).resolve().parent
MODEL = str(HERE.parent / "examples" / "tiny_chat")
ROUNDS = int(os.environ.get("ROUNDS", "5"))
RACES = 25
REAL: dict[str, Any] = {
    "model": MODEL,
    "enforce_eager": True,
    "max_model_len": 2048,
    "engine_args": {"kv_cache_memory_bytes": 256 << 20},
    "stall_timeout_s": 4,
    "show_progress": False,
}


@dataclass
class Row:
    """One line of the table."""

    fault: str
    rounds: int = 0
    requests: int = 0
    answered: int = 0
    told: int = 0
    lost: int = 0
    left: int = 0
    files: int = 0
    heard_s: float = 0.0
    next_s: list[float] = field(default_factory=list)

    def add(self, *, answered: int = 0, told: int = 0, lost: int = 0, left: int = 0, files: int = 0) -> None:
        self.rounds += 1
        self.requests += answered + told + lost
        self.answered += answered
        self.told += told
        self.lost += lost
        self.left += left
        self.files += files

    def __str__(self) -> str:
        next_s = "" if not self.next_s else f"{statistics.median(self.next_s):.1f} (at most {max(self.next_s):.1f})"
        cells = (
            self.fault,
            self.rounds,
            self.requests,
            self.answered,
            self.told,
            self.lost,
            self.left,
            self.files,
            f"{self.heard_s:.1f}" if self.heard_s else "",
            next_s,
        )
        return f"| {' | '.join(map(str, cells))} |"


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def engine_with(**settings: Any) -> Iterator[Engine]:
    engine = Engine(**settings)
    try:
        yield engine
    finally:
        engine.shutdown(force=True)


# ---- real vLLM


def signals() -> Iterator[Row]:
    """Each signal to each process of the tree, while the engine does this and that."""
    with engine_with(**REAL) as engine:
        for activity, act in matrix.ACTIVITIES.items():
            for fault in matrix.FAULTS:
                if fault.signal is signal.SIGSTOP and fault.process == "supervisor":
                    continue  # it is the one who would notice
                row = Row(f"{fault}, {activity}")
                for _ in range(ROUNDS):
                    outcome = act(engine, fault)
                    row.add(
                        answered=outcome.answered,
                        told=outcome.told,
                        lost=outcome.lost,
                        left=outcome.left,
                        files=outcome.files,
                    )
                    row.heard_s = max(row.heard_s, outcome.heard_s)
                    row.next_s.append(outcome.next_answer_s)
                    for error in outcome.errors:
                        say(f"  {row.fault}: {error}")
                yield row


def race() -> Row:
    """A request that comes at a random moment of an eviction."""
    row = Row("request racing an eviction")
    moments = random.Random(2)
    with engine_with(**REAL) as engine:
        for _ in range(RACES):
            began = time.monotonic()
            is_answered = matrix.race_an_eviction(engine, moments.uniform(0, 0.3))
            row.add(answered=is_answered, lost=not is_answered)
            row.next_s.append(time.monotonic() - began)
    return row


def crowd() -> Row:
    row = Row("20 processes at once, nothing running")
    for seed in range(min(3, ROUNDS)):
        with engine_with(**REAL, seed=seed) as engine:  # an engine of its own, so that its starts can be counted
            answered, starts = matrix.start_from_twenty_processes(engine)
            assert starts == 1, f"{starts} engines were started"
            before = all_processes(engine)
            engine.shutdown()
            row.add(answered=answered, lost=20 - answered, left=wait_gone(before, matrix.LEFT_AFTER_S))
    return row


def killed_app() -> Row:
    """The only client is killed in the middle of a stream: its engine leaves by itself."""
    row = Row("SIGKILL of the app, idle_ttl_s = 1")
    with engine_with(**{**REAL, "idle_ttl_s": 1, "standby": False}) as engine:
        for _ in range(min(3, ROUNDS)):
            app = run_app("stream_forever", settings_of(engine))
            assert app.stdout and app.stderr
            app.stdout.readline()
            everything, files = all_processes(engine), matrix.shared_memory_of(engine)
            app.send_signal(signal.SIGKILL)
            app.wait()
            app.stdout.close()
            app.stderr.close()
            left = wait_gone(everything, matrix.LEFT_AFTER_S)
            row.add(left=left, files=sum(os.path.exists(path) for path in files))
    return row


def failing_starts() -> Iterator[Row]:
    """Five threads want an engine that can't start; then the cause is fixed."""
    unknown = {"architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}
    damaged = copy_to("damaged")
    weights = Path(damaged) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    causes: dict[str, dict[str, Any]] = {
        "unsupported architecture": {"model": copy_to("unknown", **unknown)},
        "truncated weights": {"model": damaged},
        "more KV cache than RAM": {"engine_args": {"kv_cache_memory_bytes": 1 << 42}},
        "a flag vLLM does not know": {"engine_args": {"no_such_flag": 1}},
    }
    for name, settings in causes.items():
        yield told_to_all(f"start fails: {name}", {**REAL, **settings}, 1)


def copy_to(name: str, **config: Any) -> str:
    folder = ROOT / name
    folder.mkdir(parents=True)
    return copy_of_tiny_chat(folder, **config)


def told_to_all(name: str, settings: dict[str, Any], rounds: int) -> Row:
    """All who wait for a start that fails are told why, at once, and nothing is left; the time is theirs."""
    row = Row(name)
    for _ in range(rounds):
        with engine_with(**settings) as engine, ThreadPoolExecutor(5) as pool:
            began = time.monotonic()
            outcomes = list(pool.map(lambda _: outcome_of(engine), range(5)))
            row.next_s.append(time.monotonic() - began)
            status = engine.status()
            row.add(told=outcomes.count("told"), lost=5 - outcomes.count("told"), left=int(bool(status.server_pid)))
    return row


def outcome_of(engine: Engine) -> str:
    try:
        engine.chat(matrix.HELLO, max_tokens=8)
    except EngineStartError:
        return "told"
    except VLLMError:
        return "told something else"
    return "answered"


# ---- the fake: what vLLM can't be made to show


def on_the_fake() -> Iterator[Row]:
    python = make_environment(ROOT / "fake", "cpu")
    base: dict[str, Any] = {
        "model": MODEL,
        "python": python,
        "show_progress": False,
        "stall_timeout_s": 1,
        "timeout": 20,
    }
    once = ROOT / "once"

    def faults(**knobs: Any) -> dict[str, Any]:
        return {**base, "engine_args": {"fake": {**knobs, "once": str(once)}}}

    starts = {
        "fake: exit 0 at start": faults(exit_at="start", exit_code=0),
        "fake: hang at start": faults(hang_at="start"),
        "fake: hang while loading weights": faults(hang_at="weights"),
    }
    for name, settings in starts.items():
        row = Row(name)
        for _ in range(ROUNDS):
            once.unlink(missing_ok=True)
            with engine_with(**settings) as engine:
                first = outcome_of(engine)
                began = time.monotonic()
                second = outcome_of(engine)
                row.next_s.append(time.monotonic() - began)
                row.add(told=first == "told", lost=first != "told", answered=second == "answered")
        yield row
    requests = {
        "fake: exit 0 while requests run": faults(exit_at="request", exit_code=0),
        "fake: hang in the middle of an answer": faults(hang_mid_generation=True),
        "fake: 200 MB of log in one go": faults(flood_at="start", flood_bytes=200_000_000),
        "fake: a storm of 503": faults(storm_503=2),
    }
    for name, settings in requests.items():
        row = Row(name)
        for _ in range(ROUNDS):
            once.unlink(missing_ok=True)
            with engine_with(**settings) as engine:
                began = time.monotonic()
                outcome = outcome_of(engine)
                row.next_s.append(time.monotonic() - began)
                row.add(answered=outcome == "answered", lost=outcome != "answered")
        yield row


# ---- the table


def main() -> int:
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        say(str(row))

    try:
        for many in (on_the_fake, signals, failing_starts):
            for row in many():
                note(row)
        for single in (race, crowd, killed_app):
            note(single())
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
    text = "\n".join(
        [
            "# When something breaks",
            "",
            "One run of `make bench-faults`. *Answered*: the caller saw nothing of it. *Told*: the caller got one "
            "of our errors. *Lost*: neither. *Left*: processes of the broken engine still there 15 s later; *files*: "
            "shared memory it left. *Heard*: seconds until the last caller who was told had heard it, at most. "
            "*Seconds*: from the fault until the next request was answered, or, where a start fails, until all who "
            "waited were told; median (at most).",
            "",
            "| fault | rounds | requests | answered | told | lost | left | files | heard | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(str, rows),
            "",
        ]
    )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "faults.md").write_text(text)
    return 0 if not any(row.lost or row.left or row.files for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
