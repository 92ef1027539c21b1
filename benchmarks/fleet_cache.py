"""Conversations on three real vLLM servers whose prefix caches are too small for all of them: who finds what.

Each way to choose a server has the same conversations, and empty caches to begin with. Hits are vLLM's own counters
(``vllm:prefix_cache_queries`` and ``_hits``). Then the model of fleet_model.py has the same conversations, with the
speeds measured here: one table, so that it shows how far fleet_simulation.py can be trusted.

Writes benchmarks/results/fleet_cache.md. ``make bench-fleet-cache`` runs it: 5 minutes. Where vLLM's router is
installed (``make test-routers`` makes .venv-routers) it takes part.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from figures import percentile, say
from fleet_model import CHOICES, Capacity, Choice, Figures, Fleet, Run, Session, Turn
from servers import ENV_DEFAULTS, MODEL, SETTINGS

from shared_engine import Engine
from shared_engine.request import fleet_endpoint
from tests.support.plain_server import PlainServer, plain_servers
from tests.support.vllm_router import ROUTERS, vllm_router

SERVERS = 3
CACHE_BYTES = int(os.environ.get("CACHE_MB", "16")) << 20
SESSIONS, TURNS, SYSTEM_PROMPTS = 24, int(os.environ.get("TURNS", "6")), 4
SYSTEM_WORDS, QUESTION_WORDS, ANSWER_TOKENS = 300, (20, 60), 32
BEGIN_S, THINK_S = 6.0, 3.0
CALL: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "temperature": 0.0, "extra_body": {"ignore_eos": True}}
WORDS = (
    "river", "bridge", "winter", "market", "garden", "teacher", "window", "letter", "mountain", "harbour", "music",
    "paper", "silver", "forest", "engine", "candle", "village", "doctor", "summer", "island",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a server is chosen.

    Attributes:
        model: the model's name for it; None where the model has no such one.
        router: flags of vllm-router, which chooses.
    """

    words: str
    model: str | None
    router: tuple[str, ...] | None = None


AFFINITY, LEAST, ROUND_ROBIN, RANDOM = "least in flight, with sessions", "least in flight", "round robin", "random"
WAYS = [
    Way(AFFINITY, AFFINITY),
    Way(LEAST, LEAST),
    Way(ROUND_ROBIN, ROUND_ROBIN),
    Way(RANDOM, RANDOM),
    Way("vllm-router, round robin", ROUND_ROBIN, ("--policy", "round_robin")),
    Way("vllm-router, cache-aware", None, ()),
    Way("vllm-router, cache-aware, `--balance-abs-threshold 4`", None, ("--balance-abs-threshold", "4")),
]


@dataclass(frozen=True)
class Asked:
    """One request: of which session and turn, and what came of it."""

    session: int
    turn: int
    first_s: float
    took_s: float
    prompt: int
    cached: int


@dataclass(frozen=True)
class Talk:
    """A conversation, as it is held."""

    number: int
    began: float
    system: int
    questions: Sequence[str]
    thinks_s: Sequence[float]


def talks() -> Iterator[Talk]:
    """The same each time."""
    chance = random.Random(5)
    for number in range(SESSIONS):
        questions = [f"{number}: {_words(chance, chance.randint(*QUESTION_WORDS))}?" for _ in range(TURNS)]
        thinks = [chance.expovariate(1 / THINK_S) for _ in range(TURNS)]
        yield Talk(number, chance.uniform(0, BEGIN_S), number % SYSTEM_PROMPTS, questions, thinks)


def _words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


def system_prompt(number: int) -> str:
    return f"You are assistant {number}. " + _words(random.Random(number), SYSTEM_WORDS)


async def hold(talk: Talk, engine_of: Callable[[], Engine]) -> list[Asked]:
    """One conversation from its beginning to its end, each turn on the engine that ``engine_of`` gives."""
    asked = []
    messages = [{"role": "system", "content": system_prompt(talk.system)}]
    await asyncio.sleep(talk.began)
    for turn, question in enumerate(talk.questions):
        await asyncio.sleep(talk.thinks_s[turn] if turn else 0.0)
        messages.append({"role": "user", "content": question})
        began, first, usage, text = time.perf_counter(), 0.0, None, ""
        async for chunk in engine_of().astream_chat(messages, **CALL):
            first = first or time.perf_counter() - began
            text, usage = text + chunk.text, chunk.usage or usage
        assert usage is not None
        took = time.perf_counter() - began
        asked.append(Asked(talk.number, turn, first, took, usage.prompt_tokens, usage.cached_tokens or 0))
        messages.append({"role": "assistant", "content": text})
    return asked


def held(urls: Sequence[str], words: str) -> list[Asked]:
    """All conversations, side by side."""
    engines = [Engine(base_url=url, model=MODEL) for url in urls]
    whole = Engine(base_url=list(urls) if len(urls) > 1 else urls[0], model=MODEL)
    turn, chance = iter(range(1_000_000)), random.Random(3)
    ways: dict[str, Callable[[], Engine]] = {
        ROUND_ROBIN: lambda: engines[next(turn) % len(engines)],
        RANDOM: lambda: chance.choice(engines),
    }

    async def all_of_them() -> list[Asked]:
        found = await asyncio.gather(*(hold(talk, ways.get(words, lambda: whole)) for talk in talks()))
        for engine in (*engines, whole):
            await engine.aclose()
        return [asked for each in found for asked in each]

    with ExitStack() as stack:
        if words == LEAST:
            stack.enter_context(mock.patch.object(fleet_endpoint, "affinity_key", return_value=None))
        return asyncio.run(all_of_them())


# ---- vLLM's own numbers


def counted(servers: Sequence[PlainServer]) -> tuple[float, float]:
    """Tokens that were looked for in the prefix caches, and those that were found."""
    pages = [_get(f"{server.url}/metrics") for server in servers]
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
    looked, found = (sum(_value(page, name) for page in pages) for name in names)
    return looked, found


def _value(page: str, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    )


def cache_of(server: PlainServer) -> tuple[int, int]:
    """Tokens of a block, and of the whole cache."""
    page = _get(f"{server.url}/metrics")
    labels = next(line for line in page.splitlines() if line.startswith("vllm:cache_config_info{"))

    def label(name: str) -> int:
        return int(labels.split(f'{name}="', 1)[1].split('"', 1)[0])

    return label("block_size"), label("block_size") * label("num_gpu_blocks")


def tokens_of(system: str, url: str) -> int:
    """With the chat template's own, before the first question."""
    body = {"model": MODEL, "messages": [{"role": "system", "content": system}], "add_generation_prompt": False}
    request = urllib.request.Request(f"{url}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.loads(answer.read())["count"])


def forget(servers: Sequence[PlainServer]) -> None:
    """Empty the caches."""
    for server in servers:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/reset_prefix_cache", method="POST"), timeout=30)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


# ---- the model of the same servers


def measured(urls: Sequence[str], block: int, cache_tokens: int) -> Capacity:
    """Speeds of one server while all work, as they do under the load: they share the machine's processors."""
    engines = [Engine(base_url=url, model=MODEL) for url in urls]

    async def one(engine: Engine, text: str, tokens: int) -> tuple[float, float, int]:
        began, first, prompt = time.perf_counter(), 0.0, 0
        call = {**CALL, "max_tokens": tokens}
        async for chunk in engine.astream_chat([{"role": "user", "content": text}], **call):
            first = first or time.perf_counter() - began
            prompt = chunk.usage.prompt_tokens if chunk.usage else prompt
        return first, (time.perf_counter() - began - first) / max(1, tokens - 1), prompt

    async def together(beside: int, words: int, tokens: int, seed: int) -> list[tuple[float, float, int]]:
        asked = (
            one(engine, f"{seed} {number} {_words(random.Random(seed * 100 + number), words)}", tokens)
            for engine in engines
            for number in range(beside)
        )
        return await asyncio.gather(*asked)

    async def all_of_them() -> Capacity:
        short, long, few, many = [], [], [], []
        for seed in range(6):
            short += await together(1, 20, 2, seed)
            long += await together(1, 700, 2, seed)
            few += await together(1, 20, 40, seed + 50)
            many += await together(4, 20, 40, seed + 80)
        for engine in engines:
            await engine.aclose()
        short_s, long_s = (statistics.median(first for first, _, _ in each) for each in (short, long))
        tokens = long[0][2] - short[0][2]
        one_s, four_s = (statistics.median(step for _, step, _ in each) for each in (few, many))
        each_s = max(0.0, (four_s - one_s) / 3)
        rate = tokens / max(1e-6, long_s - short_s)
        return Capacity(rate, max(0.0, short_s - one_s), one_s - each_s, each_s, 32, cache_tokens, block)

    return asyncio.run(all_of_them())


def modelled(asked: Sequence[Asked], choose: Choice, capacity: Capacity, system_tokens: Sequence[int]) -> Figures:
    """The same conversations, with the lengths that they had."""
    prompts = {(each.session, each.turn): each.prompt for each in asked}
    sessions = [
        Session(
            talk.number,
            talk.began,
            talk.system,
            system_tokens[talk.system],
            [
                Turn(prompts[talk.number, turn], ANSWER_TOKENS, talk.thinks_s[turn] if turn else 0.0)
                for turn in range(TURNS)
            ],
        )
        for talk in talks()
    ]
    run = Run(Fleet(SERVERS, choose, random.Random(3), capacity))
    run.begin(sessions)
    return run.until(float("inf"))


def main() -> None:
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    settings = {**SETTINGS, "engine_args": {"kv_cache_memory_bytes": CACHE_BYTES, "max_num_seqs": 32}}
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mode = {"VLLM_SERVER_DEV_MODE": "1"}  # for /reset_prefix_cache
        servers = stack.enter_context(plain_servers(SERVERS, settings, folder, environment=mode))
        urls = [server.url for server in servers]
        block, tokens = cache_of(servers[0])
        capacity = measured(urls, block, tokens)
        system_tokens = [tokens_of(system_prompt(number), urls[0]) for number in range(SYSTEM_PROMPTS)]
        say(f"measured: {capacity}; system prompts of {system_tokens} tokens")
        has_router = (ROUTERS / "bin" / "vllm-router").exists()
        for number, way in enumerate(each for each in WAYS if each.router is None or has_router):
            place = folder / f"way{number}"
            place.mkdir()
            with ExitStack() as of_this_way:
                front = urls
                if way.router is not None:
                    front = [of_this_way.enter_context(vllm_router(urls, place, *way.router))]
                forget(servers)
                looked, found = counted(servers)
                asked = held(front, way.words)
                now = counted(servers)
            hit = (now[1] - found) / max(1.0, now[0] - looked)
            model = None if way.model is None else modelled(asked, CHOICES[way.model], capacity, system_tokens)
            outcomes.append(Outcome(way.words, asked, hit, model))
            say(outcomes[-1].row)
    write(outcomes, capacity)


@dataclass(frozen=True)
class Outcome:
    """What came of a way: real, and by the model, where it has that way."""

    words: str
    asked: Sequence[Asked]
    hit: float
    model: Figures | None

    def times(self) -> Iterator[tuple[float, float | None]]:
        """Real and simulated: of the first token p50 and p99, of the whole p50 and p99."""
        first, took = [each.first_s for each in self.asked], [each.took_s for each in self.asked]
        pairs = ((first, self.model and self.model.first_s), (took, self.model and self.model.took_s))
        for real, simulated in pairs:
            for percent in (50, 99):
                yield percentile(real, percent), percentile(simulated, percent) if simulated else None

    @property
    def row(self) -> str:
        cells = [
            self.words,
            str(len(self.asked)),
            f"{self.hit:.0%}",
            "" if self.model is None else f"{self.model.hit:.0%}",
        ]
        for real, simulated in self.times():
            cells += [f"{real:.2f}", "" if simulated is None else f"{simulated:.2f}"]
        return f"| {' | '.join(cells)} |"


def trust(outcomes: Sequence[Outcome]) -> str:
    """How far the model was off, in a sentence."""
    both = [each for each in outcomes if each.model is not None]
    points = max(abs(each.hit - each.model.hit) for each in both if each.model) * 100
    shares = zip(*([simulated / real for real, simulated in each.times() if simulated] for each in both), strict=True)
    names = ("the median first token", "its p99", "the median whole answer", "its p99")
    times = ", ".join(f"{name} {min(each):.1f} to {max(each):.1f}" for name, each in zip(names, shares, strict=True))
    return (
        f"So the model's hits are within {points:.0f} points of real ones; its times are these multiples of real ones: "
        f"{times}. It knows nothing of three servers that share two processors, so take its hits as figures, and its "
        "times only to compare choices."
    )


def write(outcomes: Sequence[Outcome], capacity: Capacity) -> None:
    lines = [
        "# Conversations on three servers: prefix caches, real and simulated",
        "",
        f"{SESSIONS} conversations of {TURNS} turns on {SYSTEM_PROMPTS} system prompts of some {SYSTEM_WORDS} words, "
        f"side by side, on three plain vLLM servers (2 cores) with {capacity.cache_tokens:,} tokens of KV cache each "
        f"in blocks of {capacity.block}. Hits: vLLM's own counters, of the prompts' tokens. Simulated: fleet_model.py "
        f"with the same conversations and the speeds measured: {capacity.prefill_tokens_s:,.0f} prompt tokens/s, "
        f"{capacity.before_s * 1000:.0f} ms before them, {capacity.step_s * 1000:.1f} ms a token and "
        f"{capacity.step_of_each_s * 1000:.1f} ms more for each answer beside it. `make bench-fleet-cache`.",
        "",
        "| choice | requests | hits | simulated | first token p50, s | simulated | p99, s | simulated | whole p50, s | "
        "simulated | p99, s | simulated |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(each.row for each in outcomes),
        "",
        trust(outcomes),
    ]
    (HERE / "results" / "fleet_cache.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
