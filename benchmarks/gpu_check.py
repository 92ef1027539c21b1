"""What only a GPU can show: the table of ``make bench`` on models of a size, the sleep tier, memory that comes back,
forked against plain starts, engines that swap.

    python benchmarks/gpu_check.py [MODEL [OTHER_MODEL]]

Without a model, the table alone, on tiny_chat's architecture at larger sizes with random weights. Without a GPU it says
so and leaves with 2. Writes benchmarks/results/gpu.md. Not yet run on one.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import say
from servers import HELLO, HERE, MODEL, runtime_directory
from stage import Plan
from throughput import measure, report

from shared_engine import Engine, EngineState, GenerationResult
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.gpu import nvidia_smi
from shared_engine.machine.memory import GIB, read_memory

ROUNDS = int(os.environ.get("ROUNDS", "3"))
CHATS, TOKENS = 256, 64
SLEEP_AFTER_S = 2.0
WITHIN_S = 300.0
# LLM, vllm serve and ours are up side by side.
SHARED = {"max_model_len": 2048, "gpu_memory_utilization": 0.28}
SHAPES = ((1024, 16), (2048, 24), (4096, 32))
HEAD_DIM = 128


def free_gib() -> float:
    """Of the first GPU."""
    return read_memory()["cuda:0"].free / GIB


def wait_until(condition: Callable[[], bool], what: str) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WITHIN_S:
            raise SystemExit(f"waited {WITHIN_S:g} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def engine_of(start: str, **settings: Any) -> Iterator[Engine]:
    """An engine that starts ``fork`` or ``plain``; it is gone afterwards."""
    os.environ[START_VARIABLE] = start
    try:
        engine = Engine(**settings)
        engine.status()  # its settings are fixed now
    finally:
        del os.environ[START_VARIABLE]
    try:
        yield engine
    finally:
        engine.shutdown(force=True)


def ask(engine: Engine, answers: set[str]) -> float:
    """Seconds until the answer, which is added to ``answers``."""
    began = time.monotonic()
    answers.add(engine.chat(HELLO, temperature=0, max_tokens=32).text)
    return time.monotonic() - began


def batch_rate(engine: Engine) -> float:
    """Tokens a second."""
    conversations = [[{"role": "user", "content": f"Hello number {index}"}] for index in range(CHATS)]
    params: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
    began = time.monotonic()
    results: list[GenerationResult] = engine.chat_batch(conversations, **params)
    return sum(result.usage.completion_tokens for result in results) / (time.monotonic() - began)


def measure_starts(model: str, start: str) -> dict[str, list[float]]:
    """Cold, awake again, back from standby; memory at each stage; throughput."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)
        say(f"  {start}: {name}: {value:,.2f}")

    for _ in range(ROUNDS):
        before = free_gib()
        with engine_of(start, model=model, sleep_after_s=SLEEP_AFTER_S, idle_ttl_s=600) as engine:
            answers: set[str] = set()
            note("cold start to the first answer, s", ask(engine, answers))
            note("GPU memory while ready, GiB", before - free_gib())
            note("batch, tok/s", batch_rate(engine))
            wait_until(lambda: engine.status().state is EngineState.ASLEEP, "sleep")
            note("GPU memory while asleep, GiB", before - free_gib())
            note("awake again to the first answer, s", ask(engine, answers))
            engine.evict()
            note("GPU memory right after evict, GiB", before - free_gib())
            note("back from standby to the first answer, s", ask(engine, answers))
            if len(answers) != 1:
                say(f"  {start}: the answers differ: {answers}")
    return figures


def measure_swap(model: str, other: str) -> list[float]:
    """Two models that do not fit together take turns; seconds until the other one answers."""
    times = []
    with engine_of("plain", model=model) as first, engine_of("plain", model=other, seed=1) as second:
        for _ in range(ROUNDS):
            for engine in (first, second):
                times.append(ask(engine, set()))
                say(f"  swap to {engine.settings.model}: {times[-1]:.1f} s")
    return times


def write_scaled_model(folder: Path, hidden_size: int, layers: int) -> None:
    """tiny_chat, wider and deeper, without weights (load_format="dummy" makes them up)."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(Path(MODEL, name), folder)
    config = json.loads(Path(MODEL, "config.json").read_text())
    heads = hidden_size // HEAD_DIM
    config |= {
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 5 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": HEAD_DIM,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def throughput(title: str, folder: Path, settings: dict[str, Any]) -> list[str]:
    """The table of ``make bench``; embeddings are left out."""
    plan = Plan({**SHARED, **settings}, embedding=None, rounds=ROUNDS)
    sections, notes = measure(plan, folder)
    return report(title, f"`{settings}`, ROUNDS={ROUNDS}.", sections, notes).splitlines()


def measure_life(model: str, other: str) -> list[str]:
    """Starts, sleep, memory, swaps."""
    lines = []
    for start in ("plain", "fork"):
        say(f"== {start}")
        figures = measure_starts(model, start)
        lines += [f"| {start} start | median | all |", "|---|---|---|"]
        lines += [
            f"| {name} | {statistics.median(values):,.2f} | {', '.join(f'{value:,.2f}' for value in values)} |"
            for name, values in figures.items()
        ]
        lines.append("")
    say("== swap")
    swaps = measure_swap(model, other)
    return [*lines, f"Two engines that do not fit together, taking turns: {statistics.median(swaps):.1f} s a swap.", ""]


def main(argv: list[str]) -> int:
    gpus = nvidia_smi("--query-gpu=name,driver_version")
    if not gpus:
        say("no NVIDIA GPU here (nvidia-smi tells of none)")
        return 2
    lines = ["# On a GPU", "", f"`python benchmarks/gpu_check.py` on {', '.join(gpus[0])}.", ""]
    try:
        with runtime_directory() as folder:
            if argv:
                lines += measure_life(argv[0], argv[-1])
                lines += throughput(f"{Path(argv[0]).name}", folder, {"model": argv[0]})
            for hidden_size, layers in () if argv else SHAPES:
                model = folder / f"random_{hidden_size}x{layers}"
                write_scaled_model(model, hidden_size, layers)
                random_weights = {"model": str(model), "engine_args": {"load_format": "dummy"}}
                lines += throughput(f"Random weights, {hidden_size} x {layers} layers", folder, random_weights)
    finally:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "gpu.md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
