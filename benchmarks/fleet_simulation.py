"""Fleets that this machine cannot hold, of 10 to 1,000 servers, by the model of fleet_model.py.

Chats come in sessions of several turns that grow. Some servers are slow, one dies and comes back. Compared: how a
request's server is chosen. How far the model can be trusted: results/fleet_cache.md.

    python benchmarks/fleet_simulation.py [SERVERS ...]

Writes benchmarks/results/fleet_simulation.md.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from figures import percentile
from fleet_model import CHOICES, Capacity, Choice, Figures, Fleet, Run, Session, Turn, cache_aware

CAPACITY = Capacity()
SYSTEM_PROMPTS, SYSTEM_TOKENS = 40, 1_500
TURNS, QUESTION_TOKENS, ANSWER_TOKENS = (2, 10), (50, 400), (50, 300)
THINK_S = 12.0
LOAD = 0.75
"""Of what the servers could answer without any cache."""
SECONDS = 240.0
WARM_S = 60.0
SEED = 7


def run(count: int, choose: Choice) -> Figures:
    """Chats for four minutes, the same for each way to choose."""
    run = Run(Fleet(count, choose, random.Random(SEED + 1), CAPACITY), WARM_S)
    for number in range(0, count, 10):  # one in ten is slow
        run.fleet.servers[f"s{number}"].slowness = 2.0
    run.begin(sessions(count, random.Random(SEED)))

    def come_back(_: float) -> None:
        run.fleet.servers["s1"].is_up = True

    run.at(SECONDS * 0.5, lambda now: run.die("s1", now))
    run.at(SECONDS * 0.7, come_back)
    return run.until(SECONDS)


def sessions(count: int, chance: random.Random) -> Iterator[Session]:
    """So many that the servers have LOAD of what they could do without a cache."""
    turns = sum(TURNS) / 2
    prompt = SYSTEM_TOKENS + turns / 2 * (sum(QUESTION_TOKENS) + sum(ANSWER_TOKENS)) / 2
    rate = LOAD * count * CAPACITY.prefill_tokens_s / (prompt * turns)
    now, number = 0.0, 0
    while now < SECONDS:
        now += chance.expovariate(rate)
        number += 1
        yield Session(number, now, chance.randrange(SYSTEM_PROMPTS), SYSTEM_TOKENS, tuple(_turns(chance)))


def _turns(chance: random.Random) -> Iterator[Turn]:
    said = SYSTEM_TOKENS
    for _ in range(chance.randint(*TURNS)):
        prompt, answer = said + chance.randint(*QUESTION_TOKENS), chance.randint(*ANSWER_TOKENS)
        said = prompt + answer
        yield Turn(prompt, answer, chance.expovariate(1 / THINK_S))


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or [10, 100, 1000]
    lines = [
        "# Fleets that this machine can't hold, simulated",
        "",
        f"Chats in sessions of {TURNS[0]} to {TURNS[1]} turns on {SYSTEM_PROMPTS} system prompts of {SYSTEM_TOKENS} "
        "tokens; one server in ten at half speed, one dies and comes back. The choice is the pool's real code; the "
        "servers are a model with speeds assumed, whose cache hits were held against real servers (fleet_cache.md). "
        "`python benchmarks/fleet_simulation.py`.",
        "",
        "| servers | choice | requests | first token p50, s | p99, s | whole p50, s | p99, s | prompt tokens from the "
        "cache | moved | told in mid-stream | choice, us |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count in counts:
        for words, choose in CHOICES.items():
            if count > 100 and choose is cache_aware:
                continue  # its scan of all servers for each request takes this simulation hours
            figures = run(count, choose)
            first, took = figures.first_s, figures.took_s
            times = " | ".join(f"{percentile(each, percent):.2f}" for each in (first, took) for percent in (50, 99))
            ends = f"{figures.hit:.0%} | {figures.moved} | {figures.told} | {figures.choice_us:.1f}"
            lines.append(f"| {count} | {words} | {len(took)} | {times} | {ends} |")
            print(lines[-1], flush=True)
    (HERE / "results" / "fleet_simulation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
