"""Processor time of the gateway alone, by request and by piece of a stream: load beside it changes little of that.

The engine is the fake vLLM, so that this needs no vLLM and takes half a minute. Prints one line for each measure.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from bare import Bare
from servers import runtime_directory

from shared_engine import Engine
from tests.support.fake_vllm.environment import make_environment
from tests.support.gateways import gateway

ROUNDS = int(os.environ.get("ROUNDS", "9"))
REQUESTS, AT_ONCE = 1000, 16
STREAMS, TOKENS, STEP_S = 64, 64, 0.03
MODEL = HERE.parent / "examples" / "tiny_chat"


def cpu_s(pid: int) -> float:
    """Of its first thread, which has the event loop; finer than the clock ticks of ``cpu_of``."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def requests(bare: Bare) -> int:
    left = iter(range(REQUESTS))

    async def asker() -> None:
        for number in left:
            assert (await bare.chat(f"Hello number {number}", 1)).completion_tokens == 1

    await asyncio.gather(*(asker() for _ in range(AT_ONCE)))
    return REQUESTS


async def pieces(bare: Bare) -> int:
    streamed = await asyncio.gather(*(bare.stream(f"Hello number {number}", TOKENS) for number in range(STREAMS)))
    assert sum(each.completion_tokens for each in streamed) == STREAMS * TOKENS
    return STREAMS * TOKENS


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="vlb-", dir="/tmp") as place, runtime_directory() as folder:
        python = make_environment(Path(place) / "engine-cpu", "cpu")
        common = {"model": str(MODEL), "python": python, "idle_ttl_s": 600}
        models: dict[str, dict[str, Any]] = {
            "short": common | {"seed": 1},
            "long": common | {"seed": 2, "engine_args": {"fake": {"token_delay_s": STEP_S}}},
        }
        try:
            with gateway({"models": models}, folder) as gate, asyncio.Runner() as loop:
                for what, model, task in (("request", "short", requests), ("piece", "long", pieces)):
                    bare = Bare(model, url=gate.url)
                    loop.run(task(bare))  # warm
                    took_us = []
                    for _ in range(ROUNDS):
                        before = cpu_s(gate.process.pid)
                        count = loop.run(task(bare))
                        took_us.append((cpu_s(gate.process.pid) - before) / count * 1e6)
                    loop.run(bare.close())
                    print(f"{what}: {statistics.median(took_us):.1f} µs ({min(took_us):.1f} to {max(took_us):.1f})")
        finally:
            for fields in models.values():
                Engine(**fields).shutdown(force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
