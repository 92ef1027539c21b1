"""Fleets that this machine cannot hold, of 10 to 1,000 servers: discrete events on a virtual clock, the real pool.

A server has a prefix cache (of sessions and shared system prompts, least recently used first), computes prompts one
after the other and answers side by side, each the slower the more there are. Chats come in sessions of several turns
that grow. Some servers are slow, one dies and comes back. Compared: how a request's server is chosen.

    python benchmarks/fleet_simulation.py [SERVERS ...]

Writes benchmarks/results/fleet_simulation.md.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from figures import percentile

from shared_engine.pool.pool import Fault, Member, Pool

# One server: roughly an 8B model on one large GPU. Not measured here: the choices are compared, not the servers.
PREFILL_TOKENS_S = 20_000.0
STEP_S, STEP_OF_EACH_S = 0.012, 0.00025
MAX_NUM_SEQS = 256
CACHE_TOKENS = 400_000
SYSTEM_PROMPTS, SYSTEM_TOKENS = 40, 1_500
TURNS, QUESTION_TOKENS, ANSWER_TOKENS = (2, 10), (50, 400), (50, 300)
THINK_S = 12.0
LOAD = 0.75
"""Of what the servers could answer without any cache."""
SECONDS = 240.0
WARM_S = 60.0
SEED = 7


@dataclass
class Request:
    """One turn of a session."""

    session: int
    system: int
    prompt: int
    answer: int
    turns_left: int
    began: float
    first_at: float = 0.0
    cached: int = 0
    tries: int = 0


@dataclass
class Server:
    """Its queue of prompts, what it answers, and its cache."""

    name: str
    slowness: float = 1.0
    is_up: bool = True
    prefill_until: float = 0.0
    under_way: dict[int, tuple[Request, Member]] = field(default_factory=dict)
    cache: OrderedDict[str, int] = field(default_factory=OrderedDict)
    cached_tokens: int = 0

    def cached_of(self, request: Request) -> int:
        """Tokens of the prompt that are in its cache; reading them keeps them there."""
        for key, limit in ((f"s{request.session}", request.prompt), (f"p{request.system}", SYSTEM_TOKENS)):
            if key in self.cache:
                self.cache.move_to_end(key)
                return min(self.cache[key], limit)
        return 0

    def remember(self, request: Request) -> None:
        for key, size in ((f"p{request.system}", SYSTEM_TOKENS), (f"s{request.session}", request.prompt)):
            self.cached_tokens += size - self.cache.pop(key, 0)
            self.cache[key] = size
        while self.cached_tokens > CACHE_TOKENS:
            self.cached_tokens -= self.cache.popitem(last=False)[1]

    @property
    def running(self) -> int:
        return len(self.under_way)

    def die(self) -> list[tuple[Request, Member]]:
        """What it had under way."""
        lost, self.under_way = list(self.under_way.values()), {}
        self.is_up, self.prefill_until, self.cached_tokens = False, 0.0, 0
        self.cache.clear()
        return lost


Choice = Callable[["Fleet", Request, float], str | None]


class Fleet:
    """The servers, and whoever chooses among them."""

    def __init__(self, count: int, choose: Choice, chance: random.Random) -> None:
        self.servers = {f"s{number}": Server(f"s{number}") for number in range(count)}
        self.names = list(self.servers)
        self.pool = Pool()
        for name in self.names:
            self.pool.add(name)
        self.choose = choose
        self.chance = chance
        self.turn = itertools.count()
        self.known: dict[str, dict[int, int]] = {name: {} for name in self.names}  # what cache_aware has sent where


def by_pool(*, has_key: bool) -> Choice:
    def choose(fleet: Fleet, request: Request, now: float) -> str | None:
        member = fleet.pool.choose(1.0 + now, key=f"{request.session}" if has_key else None)
        return None if member is None else member.name

    return choose


def round_robin(fleet: Fleet, _: Request, now: float) -> str | None:
    for _name in fleet.names:
        name = fleet.names[next(fleet.turn) % len(fleet.names)]
        if fleet.pool.members[name].out_until <= 1.0 + now:
            return taken(fleet, name)
    return None


def at_random(fleet: Fleet, _: Request, now: float) -> str | None:
    for _try in range(10 * len(fleet.names)):
        name = fleet.chance.choice(fleet.names)
        if fleet.pool.members[name].out_until <= 1.0 + now:
            return taken(fleet, name)
    return None


def cache_aware(fleet: Fleet, request: Request, now: float) -> str | None:
    """vllm-router's rule and defaults: the longest known prefix while the load is even, else the shortest queue."""
    able = [name for name in fleet.names if fleet.pool.members[name].out_until <= 1.0 + now]
    if not able:
        return None
    loads = {name: fleet.pool.members[name].in_flight for name in able}
    least, most = min(loads.values()), max(loads.values())
    if most - least > 64 and most > 1.5 * least:
        name = min(able, key=loads.__getitem__)
    else:

        def match(name: str) -> int:
            known = fleet.known[name]
            return max(known.get(request.session, 0), SYSTEM_TOKENS if -1 - request.system in known else 0)

        name = max(able, key=match)
        if match(name) <= 0.3 * request.prompt:
            name = min(able, key=lambda each: len(fleet.known[each]))
    fleet.known[name][request.session] = request.prompt
    fleet.known[name][-1 - request.system] = SYSTEM_TOKENS
    return taken(fleet, name)


def taken(fleet: Fleet, name: str) -> str:
    """Counted as the pool counts, so that failures and loads are seen alike."""
    fleet.pool.members[name].in_flight += 1
    return name


CHOICES: dict[str, Choice] = {
    "least in flight, with sessions": by_pool(has_key=True),
    "least in flight": by_pool(has_key=False),
    "cache-aware (vllm-router's rule)": cache_aware,
    "round robin": round_robin,
    "random": at_random,
}


@dataclass
class Figures:
    """Of one run, after its first minute."""

    first_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    moved: int = 0
    told: int = 0
    choice_us: float = 0.0


def run(count: int, choose: Choice) -> Figures:
    """Chats for four minutes. The same chats for each way to choose."""
    chance = random.Random(SEED)
    fleet, figures = Fleet(count, choose, random.Random(SEED + 1)), Figures()
    for number in range(0, count, 10):  # one in ten is slow
        fleet.servers[f"s{number}"].slowness = 2.0
    events: list[tuple[float, int, Callable[[float], None]]] = []
    numbers, chosen, spent = itertools.count(), 0, 0.0

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(numbers), what))

    def ask(request: Request, now: float) -> None:
        nonlocal chosen, spent
        began = time.perf_counter()
        name = fleet.choose(fleet, request, now)
        spent += time.perf_counter() - began
        chosen += 1
        if name is None:
            at(now + 0.5, lambda when: ask(request, when))
            return
        server, member = fleet.servers[name], fleet.pool.members[name]
        if not server.is_up:
            fail(request, member, now)
            return
        request.cached = server.cached_of(request)
        fresh = request.prompt - request.cached
        start = max(now, server.prefill_until)
        if server.running >= MAX_NUM_SEQS:
            start += STEP_S * 10
        server.prefill_until = start + fresh / PREFILL_TOKENS_S * server.slowness
        number = next(numbers)
        server.under_way[number] = (request, member)
        step_s = (STEP_S + STEP_OF_EACH_S * server.running) * server.slowness
        request.first_at = server.prefill_until + step_s
        server.remember(request)
        done_at = request.first_at + request.answer * step_s
        at(done_at, lambda when: end(number, server, when))

    def fail(request: Request, member: Member, now: float) -> None:
        fleet.pool.failed(member, Fault.GONE, 1.0 + now, "gone")
        fleet.pool.ended(member)
        request.tries += 1
        figures.moved += 1
        ask(request, now)

    def end(number: int, server: Server, now: float) -> None:
        if number not in server.under_way:  # the server died meanwhile
            return
        request, member = server.under_way.pop(number)
        fleet.pool.answered(member)
        fleet.pool.ended(member)
        if request.began >= WARM_S:
            figures.first_s.append(request.first_at - request.began)
            figures.took_s.append(now - request.began)
            figures.prompt_tokens += request.prompt
            figures.cached_tokens += request.cached
        if request.turns_left:
            question = chance.randint(*QUESTION_TOKENS)
            following = Request(
                request.session,
                request.system,
                request.prompt + request.answer + question,
                chance.randint(*ANSWER_TOKENS),
                request.turns_left - 1,
                now + chance.expovariate(1 / THINK_S),
            )
            at(following.began, lambda when: ask(following, when))

    def die(now: float) -> None:
        for request, member in fleet.servers["s1"].die():
            if request.first_at > now:
                fail(request, member, now)
            else:
                fleet.pool.failed(member, Fault.GONE, 1.0 + now, "gone")
                fleet.pool.ended(member)
                figures.told += 1

    def come_back(_: float) -> None:
        fleet.servers["s1"].is_up = True

    at(SECONDS * 0.5, die)
    at(SECONDS * 0.7, come_back)
    for session, began in enumerate(sessions(count, random.Random(SEED + 2))):
        first = Request(
            session,
            chance.randrange(SYSTEM_PROMPTS),
            SYSTEM_TOKENS + chance.randint(*QUESTION_TOKENS),
            chance.randint(*ANSWER_TOKENS),
            chance.randint(*TURNS) - 1,
            began,
        )
        at(began, lambda when, first=first: ask(first, when))  # type: ignore[misc]
    while events and events[0][0] < SECONDS:
        when, _, what = heapq.heappop(events)
        what(when)
    figures.choice_us = spent / max(1, chosen) * 1e6
    return figures


def sessions(count: int, chance: random.Random) -> Iterator[float]:
    """When sessions begin, so that the servers have LOAD of what they could do without a cache."""
    turns = sum(TURNS) / 2
    prompt = SYSTEM_TOKENS + turns / 2 * (sum(QUESTION_TOKENS) + sum(ANSWER_TOKENS)) / 2
    rate = LOAD * count * PREFILL_TOKENS_S / (prompt * turns)
    now = 0.0
    while now < SECONDS:
        now += chance.expovariate(rate)
        yield now


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or [10, 100, 1000]
    lines = [
        "# Fleets that this machine can't hold, simulated",
        "",
        f"Chats in sessions of {TURNS[0]} to {TURNS[1]} turns on {SYSTEM_PROMPTS} system prompts of {SYSTEM_TOKENS} "
        "tokens; one server in ten at half speed, one dies and comes back. The choice is the pool's real code. "
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
            hit = figures.cached_tokens / max(1, figures.prompt_tokens)
            first, took = figures.first_s, figures.took_s
            times = " | ".join(f"{percentile(each, percent):.2f}" for each in (first, took) for percent in (50, 99))
            ends = f"{hit:.0%} | {figures.moved} | {figures.told} | {figures.choice_us:.1f}"
            lines.append(f"| {count} | {words} | {len(took)} | {times} | {ends} |")
            print(lines[-1], flush=True)
    (HERE / "results" / "fleet_simulation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
