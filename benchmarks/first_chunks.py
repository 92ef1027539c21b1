"""When the first piece of a stream comes, with an engine on the CPU that gives way to its apps, and one that does not.

    python benchmarks/first_chunks.py [NICE ...]

One engine, whose priority is changed in turn (machine/priority.py), which takes root. Writes
benchmarks/results/first_chunks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from figures import say
from servers import HELLO, HERE, SETTINGS, runtime_directory

from shared_engine import Engine
from shared_engine.machine.priority import NICE

ROUNDS = int(os.environ.get("ROUNDS", "2"))
TOKENS = 400
SINGLE, AT_ONCE = 20, ((8, 3), (64, 1))
BATCH, BATCH_TOKENS = 256, 64
OPTIONS: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@dataclass
class Figures:
    """At one priority. Seconds until the first piece, and until the last, by number of streams at once."""

    first: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


def set_priority(group: int, nice: int) -> None:
    """Of a server's processes and session; lowering takes root."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{group}/autogroup", "w") as file:
        file.write(str(nice))
    os.setpriority(os.PRIO_PGRP, group, nice)


async def one_stream(engine: Engine) -> tuple[float, float]:
    began = time.perf_counter()
    first = 0.0
    async for chunk in engine.astream_chat(HELLO, max_tokens=TOKENS, **OPTIONS):
        if chunk.text and not first:
            first = time.perf_counter() - began
    return first, time.perf_counter() - began


async def measure(engine: Engine, figures: Figures) -> None:
    for _ in range(SINGLE):
        figures.first.setdefault(1, []).append(await one_stream(engine))
    for count, times in AT_ONCE:
        for _ in range(times):
            figures.first.setdefault(count, []).extend(
                await asyncio.gather(*(one_stream(engine) for _ in range(count)))
            )
    conversations = [[{"role": "user", "content": f"Hello number {index}"}] for index in range(BATCH)]
    began = time.perf_counter()
    results = await engine.achat_batch(conversations, max_tokens=BATCH_TOKENS, **OPTIONS)
    tokens = sum(result.usage.completion_tokens for result in results)
    figures.rates.append(tokens / (time.perf_counter() - began))


def row(nice: int, count: int, times: list[tuple[float, float]]) -> str:
    first = sorted(each for each, _ in times)
    late = sum(each > whole / 2 for each, whole in times)
    middle, last = statistics.median(first), first[min(len(first) - 1, round(len(first) * 0.99))]
    return (
        f"| {nice} | {count} | {late} of {len(times)} | {middle * 1e3:.0f} | {last * 1e3:.0f} | {last / middle:.1f} |"
    )


def main(argv: list[str]) -> int:
    wanted = [int(each) for each in argv] or [0, NICE]
    found = {nice: Figures() for nice in wanted}
    with runtime_directory():
        engine = Engine(**SETTINGS)
        try:
            engine.warmup()
            group = engine.status().server_pid
            assert group is not None
            asyncio.run(measure(engine, Figures()))  # warm
            for index in range(ROUNDS):
                for nice in wanted if index % 2 == 0 else wanted[::-1]:
                    set_priority(group, nice)
                    time.sleep(0.2)
                    asyncio.run(measure(engine, found[nice]))
                    say(f"round {index + 1}, nice {nice}: {found[nice].rates[-1]:,.0f} tok/s")
        finally:
            engine.shutdown(force=True)
    base = statistics.median(found[wanted[0]].rates)
    lines = [
        f"# The first piece of a stream, by the engine's priority ({os.cpu_count()} cores)",
        "",
        f"Streams of {TOKENS} tokens; late: the first piece came after half of the time. {ROUNDS} rounds in turn.",
        "",
        "| nice | streams at once | late | p50, ms | p99, ms | p99 / p50 |",
        "|---|---|---|---|---|---|",
        *(row(nice, count, times) for nice in wanted for count, times in found[nice].first.items()),
        "",
        f"| nice | batch of {BATCH} x {BATCH_TOKENS}, tok/s | of the first row |",
        "|---|---|---|",
        *(
            f"| {nice} | {statistics.median(each.rates):,.0f} ({', '.join(f'{rate:,.0f}' for rate in each.rates)}) | "
            f"{statistics.median(each.rates) / base:.2f} |"
            for nice, each in found.items()
        ),
        "",
    ]
    (HERE / "results" / "first_chunks.md").write_text("\n".join(lines))
    say("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
