"""Replicas: which of several engines of this machine run and get requests, for all objects of a process.

An engine is in use once this process has seen it ready, and while it is needed for the requests in flight
(pool/growth.py). One that is not in use gets nothing, and so falls idle. One that died, or was evicted, is in use again
when it is needed and was started again, which requests do not wait for as long as another one is in use.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from typing import Any

from shared_engine.pool.growth import Growth
from shared_engine.pool.pool import BOUND_COUNT, Fault, Member
from shared_engine.request.members import Members

SEEN_S = 5.0
"""How long a look at an engine's queue is believed."""
LOOK_EVERY_S = 1.0
_log = logging.getLogger("shared_engine")

Start = Future[Exception | None]
"""Has its error at the end, or None."""


class Replicas(Members):
    """See the module's docstring.

    Args:
        names: of the members, in the order in which they are used.
        takes: requests that each is set to run at once.
        starts_all: use all of them at any time.
    """

    def __init__(self, names: Sequence[str], takes: int, *, starts_all: bool) -> None:
        super().__init__(min(BOUND_COUNT, takes))
        self.starts_all = starts_all
        self._growth = Growth(len(names), takes)
        for name in names:
            self.pool.add(name)
        self._begin()

    def _begin(self) -> None:
        self.waiting = 0
        """Requests of this process that wait for a start."""
        self.starts: dict[str, Start] = {}
        """Those under way."""
        self._ready: set[str] = set()
        self._seen: dict[str, tuple[float, int]] = {}
        self._look_at = 0.0
        self._growth.reset()
        for name in self.pool.members:
            self.pool.drain(name)

    def forget_in_child(self) -> None:
        super().forget_in_child()
        self._begin()

    # ---- what is needed

    def to_start(self, now: float) -> dict[str, Start]:
        """Have the pool choose from those that are needed and ready. Those to start for that, which count as under way
        until ``ended``.
        """
        with self.guard:
            members = list(self.pool.members.values())
            needed = len(members) if self.starts_all else self._needed(now)
            ready = [each for each in members if each.name in self._ready]
            ready.sort(key=lambda each: (each.out_until > now, each.number))
            in_use = ready[:needed]
            for member in members:
                if member.is_draining and member in in_use:
                    self.pool.resume(member.name)
                elif not member.is_draining and member not in in_use:
                    self.pool.drain(member.name)
            lacking = needed - sum(each.out_until <= now for each in in_use) - len(self.starts)
            others = [each for each in members if each.name not in self._ready and each.name not in self.starts]
            others.sort(key=lambda each: (max(each.out_until, now), each.number))
            # Where there is nothing else, the one that returns first is tried before its time.
            is_last_hope = not in_use and not self.starts
            chosen = [
                each
                for index, each in enumerate(others[: max(0, lacking)])
                if each.out_until <= now or (index == 0 and is_last_hope)
            ]
            return {member.name: self._begun(member) for member in chosen}

    def _needed(self, now: float) -> int:
        load, before = self._load(now), self._growth.needed
        needed = self._growth.decide(load, now)
        if needed != before:
            _log.info("replicas needed: %d -> %d, with %d requests in flight", before, needed, load)
        return needed

    def _begun(self, member: Member) -> Start:
        member.is_on_trial = bool(member.out_until)
        start = self.starts[member.name] = Future()
        return start

    def _load(self, now: float) -> int:
        """Requests that run in all of them, or wait; those of other processes as far as they were seen."""
        seen = {name: load for name, (seen_at, load) in self._seen.items() if now - seen_at < SEEN_S}
        return self.waiting + sum(
            max(member.in_flight, seen.get(member.name, 0)) for member in self.pool.members.values()
        )

    def has_another(self, tried: AbstractSet[str]) -> bool:
        return bool(self._ready - tried)

    # ---- what has happened

    def ended(self, name: str, start: Start, error: Exception | None) -> None:
        """A start has ended, well or with ``error``: those who wait for it get that."""
        with self.guard:
            self.starts.pop(name, None)
            member = self.pool.members[name]
            if error is None:
                self._ready.add(name)
                if member.out_until:
                    self.pool.answered(member)
            else:
                self.pool.failed(member, Fault.GONE, time.monotonic(), words_of(error))
            has_others = bool(self._ready)
        if error is not None and has_others:
            _log.warning("replica %s did not start, and the others go on: %s", name, words_of(error))
        start.set_result(error)

    def gone(self, member: Member) -> bool:
        was_ready = member.name in self._ready
        self._ready.discard(member.name)
        if not member.is_draining:
            self.pool.drain(member.name)
        return was_ready

    def refused(self, now: float) -> None:
        self._growth.refused(now)

    def all_gone(self) -> None:
        """They were evicted."""
        with self.guard:
            for member in self.pool.members.values():
                self.gone(member)
            self._growth.reset()

    # ---- looks

    def is_look_due(self, now: float) -> bool:
        """Once for each time that it is."""
        if self.starts_all or len(self.pool.members) == 1 or now < self._look_at:
            return False
        with self.guard:
            is_due, self._look_at = now >= self._look_at, now + LOOK_EVERY_S
        return is_due

    def told(self, takes: int) -> None:
        """How many requests each runs at once, by one that is ready."""
        with self.guard:
            self._growth.told(takes)

    def saw(self, name: str, queue: tuple[int, int] | None) -> None:
        """A look at one: the requests that run in it and wait in it, of all processes; None where it is not ready."""
        with self.guard:
            if queue is None:
                self._ready.discard(name)
                self._seen.pop(name, None)
                return
            self._ready.add(name)
            self._seen[name] = (time.monotonic(), sum(queue))
            self._growth.saw(name, *queue)


def words_of(error: Exception) -> str:
    """Without the log lines that an error shows."""
    return str(getattr(error, "message", error))


_known: dict[Any, Replicas] = {}


def replicas_of(key: Any, names: Sequence[str], takes: int, *, starts_all: bool) -> Replicas:
    """This process's one of these engines: what is in flight counts over all objects."""
    return _known.get(key) or _known.setdefault(key, Replicas(names, takes, starts_all=starts_all))
