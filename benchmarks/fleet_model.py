"""A model of servers behind a choice: discrete events on a virtual clock, the pool's real code, other ways to choose.

A server has a prefix cache in blocks (of sessions and the system prompts that they share, least recently used first),
computes prompts one after the other and answers side by side, each the slower the more there are.
``fleet_simulation.py`` runs fleets of it that this machine cannot hold, ``fleet_cache.py`` holds it against real ones.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from shared_engine.pool.pool import Fault, Member, Pool


@dataclass(frozen=True)
class Capacity:
    """What one server can do. Defaults: roughly an 8B model on one large GPU, assumed, not measured.

    Attributes:
        before_s: from the request to the beginning of its prompt, and from the end to the caller.
        step_s: of a token, and step_of_each_s more for each answer beside it.
        block: tokens of a block; only whole ones are found again.
    """

    prefill_tokens_s: float = 20_000.0
    before_s: float = 0.0
    step_s: float = 0.012
    step_of_each_s: float = 0.00025
    max_num_seqs: int = 256
    cache_tokens: int = 400_000
    block: int = 16


@dataclass(frozen=True)
class Turn:
    """One request of a session.

    Attributes:
        prompt: tokens, with all that was said before.
        think_s: from the last answer to this question.
    """

    prompt: int
    answer: int
    think_s: float = 0.0


@dataclass(frozen=True)
class Session:
    """A conversation.

    Attributes:
        system: which system prompt it begins with.
        system_tokens: of that one.
    """

    number: int
    began: float
    system: int
    system_tokens: int
    turns: Sequence[Turn]


@dataclass
class Request:
    """A turn, under way."""

    session: Session
    turn: int
    began: float
    first_at: float = 0.0
    cached: int = 0

    @property
    def prompt(self) -> int:
        return self.session.turns[self.turn].prompt

    @property
    def answer(self) -> int:
        return self.session.turns[self.turn].answer


class PrefixCache:
    """Beginnings of prompts: system prompts, and after them what is a session's own."""

    def __init__(self, capacity: Capacity) -> None:
        self._room, self._block = capacity.cache_tokens, capacity.block
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._tokens = 0

    def found(self, request: Request) -> int:
        """Tokens of the prompt that are there. The last one is always computed."""
        session = request.session
        system, own = f"p{session.system}", f"s{session.number}"
        if system not in self._kept:
            return 0
        tokens = session.system_tokens + self._kept.get(own, 0)
        return min(tokens, request.prompt - 1) // self._block * self._block

    def keep(self, request: Request, tokens: int) -> None:
        """The first ``tokens`` of the session, most recently used."""
        session = request.session
        for key, size in (
            (f"s{session.number}", tokens - session.system_tokens),
            (f"p{session.system}", session.system_tokens),
        ):
            self._tokens += size - self._kept.pop(key, 0)
            self._kept[key] = size
        while self._tokens > self._room:
            self._tokens -= self._kept.popitem(last=False)[1]

    def clear(self) -> None:
        self._kept.clear()
        self._tokens = 0


class Server:
    """Its queue of prompts, what it answers, and its cache."""

    def __init__(self, name: str, capacity: Capacity) -> None:
        self.name = name
        self.slowness = 1.0
        self.is_up = True
        self.under_way: dict[int, tuple[Request, Member]] = {}
        self.cache = PrefixCache(capacity)
        self._capacity = capacity
        self._prefill_until = 0.0

    def take(self, request: Request, member: Member, number: int, now: float) -> float:
        """When its answer will be whole."""
        capacity = self._capacity
        request.cached = self.cache.found(request)
        start = max(now + capacity.before_s, self._prefill_until)
        if len(self.under_way) >= capacity.max_num_seqs:
            start += capacity.step_s * 10
        self._prefill_until = start + (request.prompt - request.cached) / capacity.prefill_tokens_s * self.slowness
        self.under_way[number] = (request, member)
        step_s = (capacity.step_s + capacity.step_of_each_s * len(self.under_way)) * self.slowness
        request.first_at = self._prefill_until + step_s
        self.cache.keep(request, request.prompt)
        return request.first_at + (request.answer - 1) * step_s

    def answered(self, number: int) -> tuple[Request, Member] | None:
        """What it was; None where it has died meanwhile."""
        found = self.under_way.pop(number, None)
        if found is not None:
            self.cache.keep(found[0], found[0].prompt + found[0].answer - 1)
        return found

    def die(self) -> list[tuple[Request, Member]]:
        """What it had under way."""
        lost, self.under_way = list(self.under_way.values()), {}
        self.is_up, self._prefill_until = False, 0.0
        self.cache.clear()
        return lost


Choice = Callable[["Fleet", Request, float], "str | None"]


class Fleet:
    """The servers, and whoever chooses among them."""

    def __init__(self, count: int, choose: Choice, chance: random.Random, capacity: Capacity) -> None:
        self.servers = {f"s{number}": Server(f"s{number}", capacity) for number in range(count)}
        self.names = list(self.servers)
        self.pool = Pool()
        for name in self.names:
            self.pool.add(name)
        self.choose = choose
        self.chance = chance
        self.turn = itertools.count()
        self.known: dict[str, dict[int, int]] = {name: {} for name in self.names}  # what cache_aware has sent where

    def is_in(self, name: str, now: float) -> bool:
        return self.pool.members[name].out_until <= 1.0 + now


def by_pool(*, has_key: bool) -> Choice:
    def choose(fleet: Fleet, request: Request, now: float) -> str | None:
        member = fleet.pool.choose(1.0 + now, key=f"{request.session.number}" if has_key else None)
        return None if member is None else member.name

    return choose


def round_robin(fleet: Fleet, _: Request, now: float) -> str | None:
    for _name in fleet.names:
        name = fleet.names[next(fleet.turn) % len(fleet.names)]
        if fleet.is_in(name, now):
            return taken(fleet, name)
    return None


def at_random(fleet: Fleet, _: Request, now: float) -> str | None:
    for _try in range(10 * len(fleet.names)):
        name = fleet.chance.choice(fleet.names)
        if fleet.is_in(name, now):
            return taken(fleet, name)
    return None


def cache_aware(fleet: Fleet, request: Request, now: float) -> str | None:
    """vllm-router's rule and defaults: the longest known prefix while the load is even, else the shortest queue."""
    able = [name for name in fleet.names if fleet.is_in(name, now)]
    if not able:
        return None
    session = request.session
    loads = {name: fleet.pool.members[name].in_flight for name in able}
    least, most = min(loads.values()), max(loads.values())
    if most - least > 64 and most > 1.5 * least:
        name = min(able, key=loads.__getitem__)
    else:

        def match(name: str) -> int:
            known = fleet.known[name]
            return max(known.get(session.number, 0), session.system_tokens if -1 - session.system in known else 0)

        name = max(able, key=match)
        if match(name) <= 0.3 * request.prompt:
            name = min(able, key=lambda each: len(fleet.known[each]))
    fleet.known[name][session.number] = request.prompt
    fleet.known[name][-1 - session.system] = session.system_tokens
    return taken(fleet, name)


def taken(fleet: Fleet, name: str) -> str:
    """Counted as the pool counts, so that failures and loads are seen alike."""
    member = fleet.pool.members[name]
    member.in_flight += 1
    member.is_on_trial = member.is_on_trial or bool(member.out_until)
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
    """Of one run, from ``warm_s`` on."""

    first_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    moved: int = 0
    told: int = 0
    choice_us: float = 0.0

    @property
    def hit(self) -> float:
        return self.cached_tokens / max(1, self.prompt_tokens)


class Run:
    """The chats of some sessions on a fleet."""

    def __init__(self, fleet: Fleet, warm_s: float = 0.0) -> None:
        self.fleet = fleet
        self.figures = Figures()
        self._warm_s = warm_s
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._chosen, self._spent_s = 0, 0.0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def until(self, end_s: float) -> Figures:
        while self._events and self._events[0][0] < end_s:
            when, _, what = heapq.heappop(self._events)
            what(when)
        self.figures.choice_us = self._spent_s / max(1, self._chosen) * 1e6
        return self.figures

    def begin(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._ask_at(Request(session, 0, session.began))

    def _ask_at(self, request: Request) -> None:
        self.at(request.began, lambda now: self._ask(request, now))

    def _ask(self, request: Request, now: float) -> None:
        began = time.thread_time()  # of the processor: others may use the machine
        name = self.fleet.choose(self.fleet, request, now)
        self._spent_s += time.thread_time() - began
        self._chosen += 1
        if name is None:
            self.at(now + 0.5, lambda later: self._ask(request, later))
            return
        server, member = self.fleet.servers[name], self.fleet.pool.members[name]
        if not server.is_up:
            self._fail(request, member, now)
            return
        number = next(self._numbers)
        self.at(server.take(request, member, number, now), lambda later: self._end(number, server, later))

    def _fail(self, request: Request, member: Member, now: float) -> None:
        self._gone(member, now)
        self.figures.moved += 1
        self._ask(request, now)

    def _gone(self, member: Member, now: float) -> None:
        self.fleet.pool.failed(member, Fault.GONE, 1.0 + now, "gone")
        self.fleet.pool.ended(member)

    def _end(self, number: int, server: Server, now: float) -> None:
        found = server.answered(number)
        if found is None:
            return
        request, member = found
        self.fleet.pool.answered(member)
        self.fleet.pool.ended(member)
        figures = self.figures
        if request.began >= self._warm_s:
            figures.first_s.append(request.first_at - request.began)
            figures.took_s.append(now - request.began)
            figures.prompt_tokens += request.prompt
            figures.cached_tokens += request.cached
        following = request.turn + 1
        if following < len(request.session.turns):
            self._ask_at(Request(request.session, following, now + request.session.turns[following].think_s))

    def die(self, name: str, now: float) -> None:
        """What has shown nothing moves, the rest ends with an error."""
        for request, member in self.fleet.servers[name].die():
            if request.first_at > now:
                self._fail(request, member, now)
            else:
                self._gone(member, now)
                self.figures.told += 1
