"""An app with vLLM in its own Python: the three ways to have it there, side by side.

    python benchmarks/direct.py        make bench-direct

``mode="direct"``, ``mode="local"`` and ``vllm.LLM``, each in a process of the engine's Python, all up at once and asked
in turn. Writes benchmarks/results/direct.md. ROUNDS makes it shorter.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from child import Child
from figures import Contender, race, say, spread
from servers import HERE, MODEL, SETTINGS, llm_options, runtime_directory

from shared_engine import Engine
from shared_engine.launch.interpreter import find_interpreter

ROUNDS = int(os.environ.get("ROUNDS", "5"))
BATCH, TOKENS, CALLS = 256, 64, 20
WAYS = ("direct", "local", "vllm.LLM")
# What is asked, of whom, in which unit, and what a figure is made of.
MEASURES = (
    (f"batch of {BATCH} chats of {TOKENS} tokens", "batch", "tokens/s"),
    ("one chat of 1 token", "call", "ms"),
    (f"one chat of {TOKENS} tokens", "answer", "ms"),
    ("first token of a stream", "first", "ms"),
    ("evict, and answer again", "return", "s"),
)


def figure(child: Child, what: str) -> float:
    return float(child.ask(do=what, batch=BATCH, tokens=TOKENS, calls=CALLS)["figure"])


def main() -> int:
    python = find_interpreter(None).path
    os.environ["PYTHONPATH"] = str(HERE.parent)
    starts: dict[str, float] = {}
    rows: list[tuple[str, str, dict[str, list[float]]]] = []
    with runtime_directory() as folder, ExitStack() as stack:
        children: dict[str, Child] = {}
        for way in WAYS:
            say(f"== starting {way}")
            options = {"way": way, "settings": SETTINGS, "llm": llm_options(SETTINGS)}
            began = time.perf_counter()
            child = Child(python, HERE / "direct_child.py", options, folder / f"{way}.log")
            children[way] = stack.enter_context(child)
            starts[way] = time.perf_counter() - began
        stack.callback(partial(Engine(**SETTINGS, python=python).shutdown, force=True))
        for title, what, unit in MEASURES:
            able = {way: child for way, child in children.items() if what in child.told["can"]}
            say(f"== {title}")
            contenders = {way: Contender(partial(figure, child, what)) for way, child in able.items()}
            rounds = 1 if what == "return" else ROUNDS
            rows.append((title, unit, race(contenders, rounds, unit)))
    text = report(starts, rows)
    say(text)
    (Path(os.environ.get("RESULTS", HERE / "results")) / "direct.md").write_text(text)
    return 0


def report(starts: dict[str, float], rows: list[tuple[str, str, dict[str, list[float]]]]) -> str:
    head = ["", *(f'`mode="{way}"`' if way in ("direct", "local") else f"`{way}`" for way in WAYS)]
    first = ["a new process until its first answer, s", *(spread([starts[way]]) for way in WAYS)]
    lines = [first]
    for title, unit, figures in rows:
        lines.append([f"{title}, {unit}", *(spread(figures[way]) if way in figures else "-" for way in WAYS)])
    interpreter = find_interpreter(None)
    return "\n".join(
        [
            "# Direct, local, and vLLM's own class",
            "",
            f"One run of `make bench-direct`: {platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} build), model "
            f"examples/{Path(MODEL).name}, `enforce_eager`, ROUNDS={ROUNDS}. Medians, with the smallest and the "
            "largest; in alternating order.",
            "",
            *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
