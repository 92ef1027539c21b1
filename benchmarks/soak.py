"""The soak: three apps ask without a pause while processes of their engine are hit by signals, one every few seconds.

Real vLLM on tiny_chat. Every answer is compared with the one that the engine gave at rest. Writes
benchmarks/results/soak.md. ``make bench-soak MINUTES=10`` runs it; SEED and EVERY_S choose the deeds,
LENGTHS the answers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from servers import MODEL, runtime_directory
from soak_app import BATCH, LENGTHS, right_answers

from shared_engine import Engine, VLLMError
from tests.support.processes import wait_gone
from tests.support.waiting import wait_until

MINUTES = float(os.environ.get("MINUTES", "10"))
SEED = int(os.environ.get("SEED", "14"))
EVERY_S = float(os.environ.get("EVERY_S", "8"))
APPS = 3
LEFT_AFTER_S = 15.0
BEGIN_S = 120.0
DRAIN_S = 180.0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGHUP)
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "enforce_eager": True,
    "max_model_len": 2048,
    "engine_args": {"kv_cache_memory_bytes": 256 << 20, "tool_call_parser": "hermes"},
    "stall_timeout_s": 10,
    "start_timeout_s": 300,
    "timeout": 120,
    "show_progress": False,
}


@dataclass
class Deed:
    """What was done to which process."""

    at: float
    process: str
    signal: str

    def __str__(self) -> str:
        return f"{self.signal} to {self.process}"


# ---- the apps


class Apps:
    """The apps, and all that they have told."""

    def __init__(self, right: dict[str, str]) -> None:
        self.told: list[dict[str, Any]] = []
        self.words: list[str] = []
        arguments = [json.dumps(SETTINGS), json.dumps(right)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "soak_app.py"), *arguments, str(SEED + number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(APPS)
        ]
        self._readers = [
            threading.Thread(target=reader, args=(process,))
            for process in self._processes
            for reader in (self._hear, self._hear_words)
        ]
        for thread in self._readers:
            thread.start()

    def _hear(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.told.append(json.loads(line))

    def _hear_words(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.words += [line.rstrip() for line in process.stderr]

    def end(self) -> int:
        """Let each finish what it does; how many did not end by themselves."""
        hung = 0
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        until = time.monotonic() + DRAIN_S
        for process in self._processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                hung += 1
                process.kill()
                process.wait()
        for thread in self._readers:
            thread.join()
        return hung


# ---- the deeds


def deeds_of(engine: Engine, until: float) -> Iterator[Deed]:
    chance = random.Random(SEED)
    while time.monotonic() < until:
        time.sleep(chance.uniform(0.5, 1.5) * EVERY_S)
        tree = engine.status(processes=True).processes
        victims = [] if tree is None else list(tree.walk())
        number = chance.choice(SIGNALS)
        place = chance.random()
        if not victims:
            continue
        victim = victims[int(place * len(victims))]
        with contextlib.suppress(ProcessLookupError):
            at = time.monotonic()
            os.kill(victim.pid, number)
            yield Deed(at, victim.name, number.name)


# ---- the report


def report(apps: Apps, deeds: list[Deed], hung: int, left: int, files: int) -> str:
    requests = [each for each in apps.told if "way" in each]
    retried = sum(each.get("retried", 0) for each in apps.told)
    outcomes = Counter(each["outcome"] for each in requests)
    answered = sorted(each["ended"] for each in requests if each["outcome"] == "answered")
    began_after = sorted((each["began"], each["ended"]) for each in requests if each["outcome"] == "answered")
    recoveries = [
        (first - deed.at, deed) for deed in deeds if (first := _first_after(began_after, deed.at)) is not None
    ]
    slowest = max(recoveries, key=lambda pair: pair[0], default=(0.0, Deed(0, "nobody", "nothing")))
    delays = [(_since_deed(each, deeds), each) for each in requests if "typed" in each["outcome"]]
    longest = max((each["ended"] - each["began"] for each in requests), default=0.0)
    gap = max((later - sooner for sooner, later in itertools.pairwise(answered)), default=0.0)
    lines = [
        "# The soak",
        "",
        f"{MINUTES:g} minutes, seed {SEED}: {APPS} app processes with 4 threads and 4 tasks each ask without a pause; "
        f"a random process of the engine gets a random signal about every {EVERY_S:g} s. "
        f"Answers have {', '.join(map(str, LENGTHS))} tokens at most. `make bench-soak`.",
        "",
        "| | |",
        "|---|---|",
        f"| requests (a batch is one) | {len(requests):,} |",
        f"| prompts | {len(requests) + (BATCH - 1) * sum('batch' in each['way'] for each in requests):,} |",
        f"| answered, the right text | {outcomes['answered']:,} |",
        f"| tries that no caller saw | {retried:,} |",
        f"| typed errors of requests that had shown nothing | {outcomes['typed']:,} |",
        f"| typed errors in the middle of a stream | {outcomes['typed, in mid-stream']:,} |",
        f"| untyped errors | {outcomes['untyped']:,} |",
        f"| cut short without an error | {outcomes['cut short']:,} |",
        f"| another text (greedy, but in a batch of another size) | {outcomes['another text']:,} |",
        f"| signals sent | {len(deeds)} |",
        f"| apps that did not end | {hung} |",
        f"| processes, files left | {left}, {files} |",
        f"| slowest answer to a request made after a signal, s | {slowest[0]:.1f} ({slowest[1]}) |",
        f"| longest time without any answer, s | {gap:.1f} |",
        f"| longest request, s | {longest:.1f} |",
        f"| slowest error after a signal, s | {max((delay for delay, _ in delays), default=0.0):.1f} |",
        "",
        "## Errors",
        "",
        "| how many | kind | error | after |",
        "|---|---|---|---|",
    ]
    kinds = Counter(
        (each["outcome"], _without_paths(each["detail"]), str(_deed_before(each, deeds))) for _, each in delays
    )
    for (outcome, detail, deed), count in kinds.most_common(60):
        lines.append(f"| {count} | {outcome} | {detail.replace('|', '/')} | {deed} |")
    lines += ["", "## Signals", "", "| signal | times | errors after it | next answer, s: middle | slowest |"]
    lines += ["|---|---|---|---|---|"]
    after = Counter(str(_deed_before(each, deeds)) for _, each in delays)
    for name, times in sorted(Counter(map(str, deeds)).items()):
        seconds = [took for took, deed in recoveries if str(deed) == name]
        cells = f"{statistics.median(seconds):.1f} | {max(seconds):.1f}" if seconds else " | "
        lines.append(f"| {name} | {times} | {after[name]} | {cells} |")
    odd = [each for each in requests if each["outcome"] in ("cut short", "another text")]
    if odd or apps.words:
        lines += ["", "## What else was seen", ""]
        lines += [f"- {each['outcome']}, {each['way']}: {each['detail']}" for each in odd[:40]]
        lines += [f"- an app wrote: {line}" for line in apps.words[:40]]
    return "\n".join(lines) + "\n"


def _without_paths(words: str) -> str:
    """So that the same errors count as the same."""
    return re.sub(r"/\S+/(\S+)", r"\1", re.sub(r"\d+(\.\d+)? s\b", "N s", words))


def _first_after(answers: list[tuple[float, float]], at: float) -> float | None:
    """When the first answer came to a request that began after that."""
    return min((ended for began, ended in answers if began >= at), default=None)


def _deed_before(request: dict[str, Any], deeds: list[Deed]) -> Deed | None:
    return max((deed for deed in deeds if deed.at <= request["ended"]), key=lambda deed: deed.at, default=None)


def _since_deed(request: dict[str, Any], deeds: list[Deed]) -> float:
    deed = _deed_before(request, deeds)
    return request["ended"] - deed.at if deed else 0.0


def main() -> int:
    with runtime_directory() as root:
        shared_before = shared_memory()
        engine = Engine(**SETTINGS)
        deeds: list[Deed] = []
        try:
            apps = Apps(right_answers(engine))
            try:
                wait_until(lambda: apps.told, BEGIN_S, "the apps to ask")
                for deed in deeds_of(engine, time.monotonic() + MINUTES * 60):
                    deeds.append(deed)
                    print(f"{time.strftime('%H:%M:%S')} {deed}, {len(apps.told)} requests so far", flush=True)
            finally:
                hung = apps.end()
        finally:
            with contextlib.suppress(VLLMError):
                engine.shutdown(force=True)
        left = wait_gone(processes_below(root), LEFT_AFTER_S)
        files_left = [str(path) for path in (*root.rglob("*.sock"), *shared_memory() - shared_before)]
        print("files left:", *files_left)
        text = report(apps, deeds, hung, left, len(files_left))
    (HERE / "results" / "soak.md").write_text(text)
    print(text)
    return 0


def shared_memory() -> set[Path]:
    """Files as vLLM's processes name them."""
    return {*Path("/dev/shm").glob("psm_*"), *Path("/dev/shm").glob("sem.mp-*")}


def processes_below(root: Path) -> list[int]:
    """Those that know the engines' folder: supervisors, launchers, servers and what they have started."""
    mark = f"VLLM_LOCAL_RUNTIME_DIR={root}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes().split(b"\0") + (entry / "cmdline").read_bytes().split(b"\0")
            if int(entry.name) != os.getpid() and any(mark == each or str(root).encode() in each for each in told):
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
