"""One batch of 100 to 100,000 short prompts: whether time grows with their number, and memory does not.

Each size in a process of its own, on one engine. Answers are read as they come, so that what grows is ours and not the
app's list of them; ``batch``, which returns that list, is told beside it. Writes benchmarks/results/growth.md. SIZE (a
factor) makes it shorter, and writes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from batches import Memory
from figures import say
from questions import questions
from servers import HERE, SETTINGS, machine, runtime_directory

from shared_engine import Engine
from shared_engine.launch.interpreter import find_interpreter

SIZE = float(os.environ.get("SIZE", "1"))
COUNTS = [round(count * SIZE) for count in (100, 1_000, 10_000, 100_000)]
TOKENS = 1
WAYS = {"batch_as_completed": "answers dropped as they come", "batch": "a list of all answers"}
HEAD = ["prompts", "way", "seconds", "prompts/s", "growth of the app's memory, MB"]


def measured(way: str, count: int) -> dict[str, float]:
    """In this process, which has answered a few before."""
    from langchain_vllm_local import VLLM

    model = VLLM(**SETTINGS, temperature=0, max_tokens=TOKENS)
    texts: list[Any] = questions(count)
    model.batch(questions(300))
    with Memory() as memory:
        began = time.perf_counter()
        answers: Callable[..., Iterable[object]] = model.batch if way == "batch" else model.batch_as_completed
        came = sum(1 for _ in answers(texts))
        seconds = time.perf_counter() - began
    assert came == count, f"{came} answers of {count} came"
    return {"seconds": seconds, "growth_mb": memory.growth_mb}


def in_a_process(way: str, count: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, way, str(count)], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows() -> list[Sequence[str]]:
    found: list[Sequence[str]] = []
    for way, told in WAYS.items():
        for count in COUNTS:
            came = in_a_process(way, count)
            rate = count / came["seconds"]
            found.append((f"{count:,}", f"`{way}`: {told}", f"{came['seconds']:.2f}", f"{rate:,.0f}",
                          f"{came['growth_mb']:.1f}"))  # fmt: skip
            say(" | ".join(found[-1]))
    return found


def main() -> int:
    if len(sys.argv) == 3:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
        return 0
    began = time.monotonic()
    with runtime_directory():
        engine = Engine(**SETTINGS)
        try:
            engine.warmup()
            found = rows()
        finally:
            engine.shutdown(force=True)
    interpreter = find_interpreter(None)
    lines = [
        "# Batches of 100 to 100,000 prompts",
        "",
        f"One run of `make bench-growth`, {(time.monotonic() - began) / 60:.0f} minutes: {machine()}, "
        f"Python {platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} "
        f"build), model examples/tiny_chat, LangChain's `VLLM`, {TOKENS} token each. Memory is that of the app's "
        "process, at most, over what it had before the batch.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *found)),
        "",
    ]
    text = "\n".join(lines)
    say(text)
    if SIZE == 1:
        (Path(os.environ.get("RESULTS", HERE / "results")) / "growth.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
