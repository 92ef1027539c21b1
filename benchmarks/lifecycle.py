"""What an engine's life costs: starts, the forked server against a plain one, leases, the supervisor at rest.

All in one run, in alternating order. Writes benchmarks/results/lifecycle.md. ``make bench-lifecycle`` runs it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import say
from servers import HELLO, HERE, MODEL, SETTINGS, runtime_directory

from shared_engine import Engine, GenerationResult
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.proc import cpu_seconds
from shared_engine.request.local import LocalEndpoint
from tests.support.plain_server import plain_server

CHATS, TOKENS, ROUNDS = 256, 64, int(os.environ.get("ROUNDS", "3"))
QUESTIONS = [f"How many legs have {number} spiders and {number + 1} birds?" for number in range(64)]
ALONE: dict[str, Any] = {"temperature": 0, "max_tokens": 128, "extra_body": {"ignore_eos": True}}
LEASES = 20_000
REST_S = 60.0


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def measure_starts(folder: Path) -> dict[str, dict[str, list[float]]]:
    """From nothing to the first answer, and from evicted to the next one; eager, and as a user has it by default."""
    eager = Starts(SETTINGS, folder)
    default = Starts({name: value for name, value in SETTINGS.items() if name != "enforce_eager"}, folder)
    with compiled_in(folder / "compiled"):
        default.once("vllm-local, cold, nothing compiled yet")
    with compiled_in(folder / "compiled_by_serve"):
        default.serve(note=False)
    for index in range(ROUNDS):
        for starts in (eager, default):
            with compiled_in(folder / "compiled_by_serve"):
                starts.serve()
            with compiled_in(folder / "compiled"):
                starts.once("vllm-local, cold", returns=2)
        say(f"  starts, round {index + 1} of {ROUNDS}: {eager.times} {default.times}")
    return {"enforce_eager": eager.times, "default settings (compiled)": default.times}


class Starts:
    """Seconds by kind of start, with these settings."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._engine = Engine(**settings)
        self.times: dict[str, list[float]] = {"vllm serve": []}

    def serve(self, *, note: bool = True) -> None:
        began = time.perf_counter()
        with plain_server(self._settings, self._folder):
            if note:
                self.times["vllm serve"].append(time.perf_counter() - began)

    def once(self, name: str, returns: int = 0) -> None:
        def answered(name: str) -> None:
            self.times.setdefault(name, []).append(seconds_of(lambda: self._engine.chat(HELLO, max_tokens=1)))

        answered(name)
        for _ in range(returns):
            self._engine.evict()
            answered("vllm-local, after eviction")
        self._engine.shutdown()


@contextmanager
def compiled_in(folder: Path) -> Iterator[None]:
    """Servers that start inside keep what they compile in ``folder``, and find it there."""
    os.environ["VLLM_CACHE_ROOT"] = str(folder)
    try:
        yield
    finally:
        del os.environ["VLLM_CACHE_ROOT"]


def seconds_of(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def plain_start() -> Iterator[None]:
    """Engines first used inside start as ``vllm serve`` does, by spawning."""
    os.environ[START_VARIABLE] = "plain"
    try:
        yield
    finally:
        del os.environ[START_VARIABLE]


def measure_fork() -> tuple[dict[str, dict[str, list[float]]], int]:
    """Batch and single-request speed of a forked and of a plain server; and how many of the answers are equal."""
    forked, plain = Engine(**SETTINGS), Engine(**SETTINGS)
    try:
        forked.warmup()
        with plain_start():
            plain.warmup()
        assert forked.status().socket != plain.status().socket, "two servers are compared"
        engines = {"forked": forked, "plain": plain}
        figures: dict[str, dict[str, list[float]]] = {
            f"batch of {CHATS} chats of {TOKENS} tokens": {name: [] for name in engines},
            "one chat of 128 tokens at a time": {name: [] for name in engines},
        }
        batch, alone = figures.values()
        for engine in engines.values():
            batch_rate(engine)  # warm
        for index in range(2 * ROUNDS):
            for name in list(engines) if index % 2 == 0 else list(engines)[::-1]:
                batch[name].append(batch_rate(engines[name]))
                alone[name].append(alone_rate(engines[name]))
                say(f"  round {index + 1}: {name}: {batch[name][-1]:,.0f} and {alone[name][-1]:,.0f} tok/s")
        return figures, sum(answer(forked, question) == answer(plain, question) for question in QUESTIONS)
    finally:
        forked.shutdown()
        plain.shutdown()


def batch_rate(engine: Engine) -> float:
    conversations = [[{"role": "user", "content": f"Hello number {index}"}] for index in range(CHATS)]
    began = time.perf_counter()
    results: list[GenerationResult] = engine.chat_batch(conversations, **{**ALONE, "max_tokens": TOKENS})
    seconds = time.perf_counter() - began
    tokens = sum(result.usage.completion_tokens for result in results)
    assert tokens == CHATS * TOKENS, f"{tokens} tokens came, {CHATS * TOKENS} were asked for"
    return tokens / seconds


def alone_rate(engine: Engine) -> float:
    began = time.perf_counter()
    for _ in range(4):
        engine.chat(HELLO, **ALONE)
    return 4 * 128 / (time.perf_counter() - began)


def answer(engine: Engine, question: str) -> str:
    return engine.chat([{"role": "user", "content": question}], temperature=0, max_tokens=48).text


def measure_lease() -> tuple[float, float]:
    """Microseconds at the median: the lease of the only request in flight, and of one beside others."""

    async def measure() -> tuple[float, float]:
        engine = Engine(**SETTINGS)
        await engine.awarmup()
        endpoint = engine._requests.endpoint
        assert isinstance(endpoint, LocalEndpoint)
        supervisor, policy = await endpoint._resolved(), endpoint._policy

        async def one() -> float:
            began = time.perf_counter()
            await supervisor.acquire(policy, show_progress=False)
            supervisor.release()
            return (time.perf_counter() - began) * 1e6

        alone = [await one() for _ in range(LEASES)]
        await supervisor.acquire(policy, show_progress=False)
        beside = [await one() for _ in range(LEASES)]
        supervisor.release()
        return statistics.median(alone), statistics.median(beside)

    return asyncio.run(measure())


def measure_rest(engine: Engine) -> dict[str, tuple[float, float]]:
    """State -> (MB of RAM, percent of one core) of the supervisor, over REST_S seconds without a request."""
    found = {}
    for state in ("ready", "standby"):
        if state == "standby":
            engine.evict()
        pid = engine.status().supervisor_pid
        assert pid is not None
        used, began = cpu_seconds([pid]), time.monotonic()
        time.sleep(REST_S)
        share = (cpu_seconds([pid]) - used) / (time.monotonic() - began)
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        found[state] = (rss / 1024, share * 100)
    return found


def main() -> int:
    with runtime_directory() as folder:
        say("== starts")
        starts = measure_starts(folder)
        say("== forked against plain")
        figures, equal = measure_fork()
        engine = Engine(**SETTINGS)
        try:
            say("== leases")
            engine.warmup()
            first, beside = measure_lease()
            say("== the supervisor at rest")
            rest = measure_rest(engine)
        finally:
            engine.shutdown(force=True)
    interpreter = find_interpreter(None)
    lines = [
        "# What an engine's life costs",
        "",
        f"One run of `make bench-lifecycle`: {platform.machine()}, {os.cpu_count()} cores, vLLM {interpreter.version} "
        f"({interpreter.build} build), model examples/{Path(MODEL).name}; median (min to max).",
        "",
        "| start, to the first answer | seconds | of vllm serve with the same settings |",
        "|---|---|---|",
        *(
            f"| {settings}: {name} | {spread(each, 1)} | "
            f"{statistics.median(each) / statistics.median(times['vllm serve']):.2f} |"
            for settings, times in starts.items()
            for name, each in times.items()
        ),
        "",
        "| tokens a second | forked server | plain server | forked / plain |",
        "|---|---|---|---|",
        *(
            f"| {what} | {spread(each['forked'], 0)} | {spread(each['plain'], 0)} | "
            f"{statistics.median(each['forked']) / statistics.median(each['plain']):.2f} |"
            for what, each in figures.items()
        ),
        "",
        f"{equal} of {len(QUESTIONS)} greedy answers are equal, character by character.",
        "",
        "| lease of a request, take and give back | microseconds |",
        "|---|---|",
        f"| the only one in flight (two system calls) | {first:.1f} |",
        f"| beside others (a counter) | {beside:.1f} |",
        "",
        f"| supervisor, {REST_S:g} s without a request | MB of RAM | percent of a core |",
        "|---|---|---|",
        *(f"| {state} | {memory:.1f} | {share:.3f} |" for state, (memory, share) in rest.items()),
        "",
    ]
    text = "\n".join(lines)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "lifecycle.md").write_text(text)
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
