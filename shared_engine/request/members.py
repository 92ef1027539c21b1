"""The members of a fleet, whatever they are: one pool for all objects of a process that have the same ones."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Set as AbstractSet

from shared_engine.pool.pool import BOUND_COUNT, Member, Pool
from shared_engine.request.tally import EngineName


class Members:
    """See the module's docstring. Thread-safe, and fork-safe.

    Args:
        bound_count: see ``Pool``.

    Attributes:
        guard: to be held while the pool is looked at or changed.
        asked: what the requests of each are counted by that was ever asked.
    """

    def __init__(self, bound_count: int = BOUND_COUNT) -> None:
        self.guard = threading.Lock()
        self.pool = Pool(bound_count)
        self.asked: dict[EngineName, None] = {}
        _all.add(self)

    def gone(self, member: Member) -> bool:  # noqa: ARG002
        """It does not answer any more, and is not chosen until it does; False where that was known. With the guard."""
        return True

    def refused(self, now: float) -> None:
        """A member has said that it takes no more requests. With the guard."""

    def has_another(self, tried: AbstractSet[str]) -> bool:
        """Whether a request that has failed on these may go to another one now."""
        return any(not each.is_draining and each.name not in tried for each in list(self.pool.members.values()))

    def forget_in_child(self) -> None:
        """A forked child has no request in flight, and a thread of the parent may have held the lock."""
        self.guard = threading.Lock()
        members, self.pool = self.pool.members, Pool(self.pool.bound_count)
        for member in members.values():
            self.pool.add(member.name, member.weight).is_draining = member.is_draining


_all: weakref.WeakSet[Members] = weakref.WeakSet()


def _forget_in_child() -> None:
    for members in _all:
        members.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
