"""Pool: members, what each has in flight, and which of them the next request goes to.

Least in flight first, by weight; of equals the one whose turn it is. A key prefers one member, the same each time, so
that its prefix cache is used; unless that one has much more in flight than the least. A member that fails is out for a
time that grows with each failure. Then one real request tries it, and while that one is under way, others only every
TRIAL_S seconds.

Not thread-safe, and without a clock of its own: both are the caller's. A choice takes some microseconds, of however
many members.
"""

from __future__ import annotations

import heapq
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum

from shared_engine.pool.ring import Ring

BOUND_SHARE, BOUND_COUNT = 1.5, 8
"""A key's member is passed over when it has so many times the least in flight, and so many more."""

FIRST_OUT_S, MAX_OUT_S = 1.0, 60.0
TRIAL_S = 5.0
LACKS_S = 60.0


class Fault(Enum):
    """What a failed request says about its member."""

    GONE = "gone"  # no connection, or it was lost before an answer
    BUSY = "busy"  # it says itself that it takes no more now
    SILENT = "silent"  # nothing came for too long
    BROKEN = "broken"  # a failure of the server's, unless it is the request's own
    DIED = "died"  # of an engine of ours: it has ended, and can be started again


FAULTS_UNTIL_OUT = {Fault.GONE: 1, Fault.BUSY: 1, Fault.SILENT: 2, Fault.BROKEN: 3, Fault.DIED: 2}
"""How many in a row it takes."""


@dataclass(eq=False)
class Member:
    """One server, or engine.

    Attributes:
        weight: its share of the requests, against the others'.
        in_flight: requests that it has now.
        faults: in a row.
        out_until: on the caller's clock; 0 for a member that is in.
        out_s: how long it was sent out the last time.
        is_on_trial: its time is over, and one request tries it.
        is_draining: it gets no further requests.
        lacks: models that it does not serve, as far as is known, and until when that is believed.
        number: which one of the pool it is, by the order in which they came.
        last_error: of a member that has failed last; empty otherwise.
    """

    name: str
    weight: float = 1.0
    in_flight: int = 0
    faults: int = 0
    out_until: float = 0.0
    out_s: float = 0.0
    is_on_trial: bool = False
    is_draining: bool = False
    lacks: dict[str, float] = field(default_factory=dict)
    number: int = 0
    last_error: str = ""
    _turn: float = 0.0

    @property
    def is_in(self) -> bool:
        return not self.out_until and not self.is_draining

    @property
    def load(self) -> float:
        return self.in_flight / self.weight

    def may_take(self, now: float, model: str, tried: AbstractSet[str]) -> bool:
        is_out = self.is_draining or self.out_until > now
        return not is_out and self.name not in tried and self.lacks.get(model, 0.0) <= now


class Pool:
    """See the module's docstring.

    Args:
        bound_count: how many more than the least a key's member may have in flight; less than BOUND_COUNT where members
            take few at once.
    """

    def __init__(self, bound_count: int = BOUND_COUNT) -> None:
        self.bound_count = bound_count
        self.members: dict[str, Member] = {}
        self._ring = Ring()
        # Both with entries that are out of date, which are dropped when they come up.
        self._by_load: list[tuple[float, float, str]] = []
        self._by_return: list[tuple[float, str]] = []
        self._turn = 0.0
        self._count = 0

    # ---- members

    def add(self, name: str, weight: float = 1.0) -> Member:
        """
        Raises:
            ValueError: there is one of that name, or the weight is not above 0.
        """
        if name in self.members:
            raise ValueError(f"{name} is a member already")
        if not weight > 0:
            raise ValueError(f"the weight of {name} is {weight:g}: it must be above 0")
        member = self.members[name] = Member(name, weight, number=self._count, _turn=self._turn)
        self._count += 1
        self._ring.add(name, weight)
        self._file(member)
        return member

    def drain(self, name: str) -> None:
        """It gets no further requests; those under way go on."""
        self.members[name].is_draining = True

    def resume(self, name: str) -> None:
        """It gets requests again."""
        member = self.members[name]
        member.is_draining = False
        self._file(member)

    def remove(self, name: str) -> None:
        """It is forgotten; requests under way may still be ended."""
        del self.members[name]
        self._ring.remove(name)

    # ---- requests

    def choose(
        self, now: float, *, key: str | None = None, model: str = "", tried: AbstractSet[str] = frozenset()
    ) -> Member | None:
        """A member for one request, which it has in flight from now on; None where none takes one now.

        Args:
            now: on a clock that begins above 0.
            key: prefers the same member each time.
            model: that it has to serve.
            tried: members that this request has failed on; none of them is taken.
        """
        while self._by_return and self._by_return[0][0] <= now:
            _, name = heapq.heappop(self._by_return)
            if name in self.members:
                self._file(self.members[name])
        member = self._least(now, model, tried)
        if member is not None and key is not None:
            member = self._preferred(now, key, model, tried, member)
        if member is None:
            return None
        member.in_flight += 1
        self._turn = max(self._turn, member._turn)
        member._turn = self._turn + 1 / member.weight
        if member.out_until:
            member.is_on_trial = True
            self._send_out(member, now + TRIAL_S)
        self._file(member)
        return member

    def returns_at(self, now: float, model: str = "", tried: AbstractSet[str] = frozenset()) -> float | None:
        """When the first member comes back that is out; None where none ever will by itself."""
        return min(
            (
                member.out_until
                for member in self.members.values()
                if not member.is_draining and member.name not in tried and member.lacks.get(model, 0.0) <= now
            ),
            default=None,
        )

    def lack(self, member: Member, model: str, now: float) -> None:
        """It has said that it does not serve a model."""
        member.lacks = {name: until for name, until in member.lacks.items() if until > now}
        member.lacks[model] = now + LACKS_S

    def forget_lack(self, model: str) -> bool:
        """Where all lack a model, which may have come since: believe no longer the one that said so first. False where
        none has said it.
        """
        lacking = [each for each in self.members.values() if not each.is_draining and model in each.lacks]
        if lacking:
            del min(lacking, key=lambda each: (each.out_until, each.lacks[model])).lacks[model]
        return bool(lacking)

    def answered(self, member: Member) -> None:
        """A request has ended, or has an answer: the member is well."""
        if member.faults:
            member.faults, member.out_until, member.out_s, member.last_error = 0, 0.0, 0.0, ""
            member.is_on_trial = False
            self._file(member)

    def failed(self, member: Member, fault: Fault, now: float, error: str, wait_s: float = 0.0) -> None:
        """A request has failed by the member's fault. Those that fail while it is out, as they were sent before, do not
        make its time longer.

        Args:
            error: in words.
            wait_s: how long the server asks to be left alone.
        """
        member.faults += 1
        member.last_error = error
        if member.is_on_trial or (not member.out_until and member.faults >= FAULTS_UNTIL_OUT[fault]):
            member.is_on_trial = False
            member.out_s = min(MAX_OUT_S, max(FIRST_OUT_S, 2 * member.out_s))
            self._send_out(member, now + max(member.out_s, wait_s))
        elif member.out_until and now + wait_s > member.out_until:
            self._send_out(member, now + wait_s)

    def ended(self, member: Member) -> None:
        """A request is no longer in flight, however it has ended."""
        member.in_flight -= 1
        self._file(member)

    # ---- the choice

    def _send_out(self, member: Member, until: float) -> None:
        member.out_until = until
        heapq.heappush(self._by_return, (until, member.name))

    def _preferred(self, now: float, key: str, model: str, tried: AbstractSet[str], least: Member) -> Member:
        for name in self._ring.preferred(key):
            member = self.members[name]
            if member.may_take(now, model, tried):
                is_beyond = member.load > BOUND_SHARE * least.load and member.load >= least.load + self.bound_count
                return least if is_beyond else member
        return least

    def _least(self, now: float, model: str, tried: AbstractSet[str]) -> Member | None:
        if len(self._by_load) > 4 * len(self.members) + 64:
            self._by_load = [_entry(member) for member in self.members.values()]
            heapq.heapify(self._by_load)
        passed: list[tuple[float, float, str]] = []
        found = None
        while self._by_load:
            entry = self._by_load[0]
            member = self.members.get(entry[2])
            if member is None or entry != _entry(member) or member.is_draining or member.out_until > now:
                heapq.heappop(self._by_load)  # filed again when it changes, or comes back
            elif member.may_take(now, model, tried):
                found = member
                break
            else:
                passed.append(heapq.heappop(self._by_load))
        for entry in passed:
            heapq.heappush(self._by_load, entry)
        return found

    def _file(self, member: Member) -> None:
        heapq.heappush(self._by_load, _entry(member))


def _entry(member: Member) -> tuple[float, float, str]:
    return (member.load, member._turn, member.name)
