"""How a fleet's throughput grows with its servers, and what a slow one costs; all in one run.

The servers keep time (paced_server.py): two cores could not show it with real ones, which would share the cores. Each
answers so many at once, and a token takes its time, so what can be had at most is known.

Writes benchmarks/results/fleet_scaling.md. ``make bench-fleet-scaling`` runs it: 2 minutes.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from child import Child
from figures import say

from shared_engine import Engine

SLOTS, GAP_S, SPREAD, TOKENS = 8, 0.02, 0.5, 32
SERVER_TOKENS_S = SLOTS / GAP_S
FILLS, ROUNDS = 10, 3
SLOW = 2.0
COUNTS = (1, 2, 3, 6, 12)


@dataclass(frozen=True)
class Setting:
    """Servers by how many times slower than the others each is."""

    words: str
    slowness: Sequence[float]

    @property
    def at_most(self) -> float:
        """Tokens a second."""
        return sum(SERVER_TOKENS_S / each for each in self.slowness)

    @property
    def requests(self) -> int:
        """FILLS times as many as all servers, were they equally fast, answer at once."""
        return round(FILLS * SLOTS * sum(1 / each for each in self.slowness))


def batch(engine: Engine, requests: int) -> int:
    """Whole answers, by completion."""
    results = engine.chat_batch(
        [[{"role": "user", "content": f"{number}"}] for number in range(requests)], max_tokens=TOKENS
    )
    return sum(result.usage.completion_tokens for result in results)


def streams(engine: Engine, requests: int) -> int:
    """As many at once as a batch has."""
    places = asyncio.Semaphore(engine.max_concurrency)

    async def one(number: int) -> int:
        tokens = 0
        async with places:
            async for chunk in engine.astream_chat([{"role": "user", "content": f"{number}"}], max_tokens=TOKENS):
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        return tokens

    async def all_of_them() -> int:
        found = sum(await asyncio.gather(*map(one, range(requests))))
        await engine.aclose()
        return found

    return asyncio.run(all_of_them())


def rate(setting: Setting, urls: Sequence[str], ask: Callable[[Engine, int], int]) -> float:
    """Tokens a second."""
    settings: dict[str, Any] = {"base_url": list(urls) if len(urls) > 1 else urls[0], "model": "paced"}
    settings["engine_args"] = {"max_num_seqs": SLOTS}  # which decides how many are asked for at once
    began = time.perf_counter()
    tokens = ask(Engine(**settings), setting.requests)
    took = time.perf_counter() - began
    assert tokens == setting.requests * TOKENS, f"{tokens} tokens in place of {setting.requests * TOKENS}"
    return tokens / took


def main() -> None:
    settings = [Setting(f"{count}", [1.0] * count) for count in COUNTS]
    settings.append(Setting("3, one of them half as fast", [1.0, 1.0, SLOW]))
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def server(number: int, slowness: float) -> str:
            options = {"slots": SLOTS, "gap_s": GAP_S * slowness, "spread": SPREAD}
            log = folder / f"{number}-{slowness}.log"
            child = Child(sys.executable, HERE / "paced_server.py", options, log, leaves_at_eof=False)
            return str(stack.enter_context(child).told["url"])

        fast = [server(number, 1.0) for number in range(max(COUNTS))]
        slow = server(0, SLOW)
        for setting in settings:
            urls = [fast[number] if each == 1.0 else slow for number, each in enumerate(setting.slowness)]
            cells = [setting.words, f"{setting.at_most:,.0f}"]
            for ask in (batch, streams):
                rates = [rate(setting, urls, ask) for _ in range(ROUNDS)]
                middle = statistics.median(rates)
                cells += [f"{middle:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})", f"{middle / setting.at_most:.0%}"]
            rows.append(f"| {' | '.join(cells)} |")
            say(rows[-1])
    write(rows)


def write(rows: Sequence[str]) -> None:
    lines = [
        "# Throughput of a fleet by its servers",
        "",
        f"Servers that keep time: {SLOTS} answers at once each, a token in {GAP_S * (1 - SPREAD) * 1000:.0f} to "
        f"{GAP_S * (1 + SPREAD) * 1000:.0f} ms, so at most "
        f"{SERVER_TOKENS_S:,.0f} tokens/s each. Answers of {TOKENS} tokens, so many that all slots are filled {FILLS} "
        f"times; the end, where slots fall idle one by one, counts too. {ROUNDS} rounds: median, from where to where. "
        "Client and servers on 2 cores. `make bench-fleet-scaling`.",
        "",
        "| servers | tokens/s at most | `chat_batch` | of it | streams | of it |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    (HERE / "results" / "fleet_scaling.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
