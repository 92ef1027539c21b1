"""Throughput and latency: ours against vLLM in process, bare aiohttp on the same server, and its peers.

All in one run, in alternating order, several rounds; every answer is checked, and a wrong one ends the run. Writes
benchmarks/results/throughput.md and .png, and adds a line to history.csv there. ``make bench`` runs it. ROUNDS and SIZE
(a factor) make it shorter; with ONLY it measures the sections whose names have that text, prints their tables, and
writes nothing.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import history
from batches import chats, many, text_batches
from calls import mixed, one_call, threads
from embeddings import embeddings, minilm
from figures import Row, say, table
from imports import import_times
from servers import HERE, MODEL, SETTINGS, machine, runtime_directory
from stage import Plan, set_stage
from streams import many_streams, paced_latency, stream_latency

from shared_engine.launch.interpreter import find_interpreter

FRAMEWORKS_ALONE = (
    "from langchain_core.language_models import BaseChatModel, BaseLLM\n"
    "from llama_index.core.llms.custom import CustomLLM\n"
    "from llama_index.core.llms.function_calling import FunctionCallingLLM"
)
BOTH_ADAPTERS = (
    "from langchain_vllm_local import ChatVLLM\n"
    "from llama_index_vllm_local import VLLM\n"
    f"ChatVLLM(model={MODEL!r})\n"
    f"VLLM(model={MODEL!r})"
)


def measure(plan: Plan, folder: Path) -> tuple[dict[str, list[Row]], list[str]]:
    """Section -> rows; and what has to be said with them."""
    sections: dict[str, list[Row]] = {}
    notes: list[str] = []

    def section(name: str, rows: Callable[[], list[Row]]) -> None:
        if plan.only not in name:
            return
        say(f"== {name}")
        began = time.monotonic()
        sections[name] = rows()
        say(f"   {time.monotonic() - began:.0f} s")

    with ExitStack() as stack:
        say("== starting the engines")
        stage = set_stage(plan, folder, stack)
        section("Very many prompts", lambda: many(stage))
        section("Batches of chats", lambda: chats(stage))
        section("Batches of texts", lambda: text_batches(stage))
        section("Streams at once", lambda: many_streams(stage))
        section("Threads", lambda: threads(stage))
        section("One call", lambda: one_call(stage))
        section("First token and gaps, on a server that keeps time", lambda: paced_latency(stage, folder))
        section("First token and gaps, on vLLM", lambda: stream_latency(stage))
        section("Mixed load", lambda: mixed(stage))
        notes = stage.notes
    if plan.embedding is not None:
        section("Embeddings", lambda: embeddings(plan, folder))
    section("Imports", lambda: imports(plan))
    return sections, notes


def imports(plan: Plan) -> list[Row]:
    """Fresh processes, less what an empty one takes."""
    cases = {"nothing": "pass", "frameworks": FRAMEWORKS_ALONE, "ours": BOTH_ADAPTERS}
    taken = import_times(cases, plan.rounds + 2)
    alone = "importing the frameworks' base classes"
    return [
        Row(
            "import and construct both adapters",
            taken["ours"],
            "ms",
            alone,
            taken["frameworks"],
            "times at most",
            1.3,
        )
    ]


def report(title: str, head: str, sections: Mapping[str, Sequence[Row]], notes: Sequence[str]) -> str:
    rows = [row for each in sections.values() for row in each]
    met = sum(row.is_met is True for row in rows)
    goals = sum(row.goal is not None for row in rows)
    drowned = sum(row.is_drowned for row in rows)
    lines = [
        f"# {title}",
        "",
        head,
        "",
        "Medians, with the smallest and the largest of the rounds. Rounds are in alternating order, so *ours / theirs* "
        "compares neighbours: its median is of the rounds' own ratios (or differences, in ms). A peer that takes part "
        "in fewer rounds is compared by its median. *noise*: bare aiohttp differs from itself by more than the goal.",
        "",
        f"{met} of {goals} goals are met; {drowned} can't be told from noise.",
        "",
    ]
    for name, each in sections.items():
        lines += [f"## {name}", "", *table(each), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""] if notes else lines)


def main() -> int:
    import batch_plot
    from plot import draw

    plan = Plan(SETTINGS, minilm(), only=os.environ.get("ONLY", ""))
    plan = replace(plan, rounds=int(os.environ.get("ROUNDS", plan.rounds)), size=float(os.environ.get("SIZE", "1")))
    began = time.monotonic()
    with runtime_directory() as folder:
        sections, notes = measure(plan, folder)
    minutes = (time.monotonic() - began) / 60
    interpreter = find_interpreter(None)
    part = "" if plan.size == 1 else f", {plan.size:g} of the usual size"
    head = (
        f"One run of `make bench`, {minutes:.0f} minutes: {machine()}, Python "
        f"{platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} build), model "
        f"examples/tiny_chat, ROUNDS={plan.rounds}{part}."
    )
    text = report("Throughput and latency, side by side", head, sections, notes)
    say(text)
    if not plan.only:
        results = Path(os.environ.get("RESULTS", HERE / "results"))
        results.mkdir(exist_ok=True)
        run = {
            "date": history.today(),
            "commit": history.commit(),
            "machine": machine(),
            "vllm": f"{interpreter.version} ({interpreter.build})",
            "rounds": str(plan.rounds) + part,
        }
        history.add_line(results / history.FILE.name, run, (row for each in sections.values() for row in each))
        (results / "throughput.md").write_text(text)
        draw(sections, results / "throughput.png")
        batch_plot.draw(batch_plot.bars(text), results / "batches.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
