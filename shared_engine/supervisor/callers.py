"""Callers: who waits for the engine to be ready, and how all who use it want it kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from shared_engine.runtime.control import Send
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import StartProgress
from shared_engine.runtime.progress import Progress


class Callers:
    """Their policies merge into one, which holds until the next start."""

    def __init__(self) -> None:
        self._policy: KeepPolicy | None = None
        self.environment: Mapping[str, str] = {}
        """Of the last caller."""
        self._waiting: list[KeepPolicy] = []
        self._listeners: set[Send] = set()

    @property
    def have_asked(self) -> bool:
        """Whether anybody has asked for the engine yet."""
        return self._policy is not None

    @property
    def policy(self) -> KeepPolicy:
        """What all of them want, as soon as they have asked."""
        assert self._policy is not None
        return self._policy

    @property
    def is_pinned(self) -> bool:
        return self._policy is not None and self._policy.pinned

    @property
    def kept(self) -> dict[str, Any]:
        """Fields of the record: how the engine is kept."""
        return {"pinned": self.is_pinned, "idle_ttl_s": self.policy.idle_ttl_s}

    @property
    def are_waiting(self) -> bool:
        return bool(self._waiting)

    def adopt(self, policy: KeepPolicy, environment: Mapping[str, str]) -> None:
        """Keep the engine as this caller wants, too."""
        self._policy = policy if self._policy is None else self._policy.merged_with(policy)
        self.environment = environment

    def keep(self, *, idle_ttl_s: float | None, pinned: bool | None) -> None:
        """Keep the engine so, whatever they have wanted so far; None for what stays as it is."""
        changes: dict[str, Any] = {"idle_ttl_s": idle_ttl_s, "pinned": pinned}
        if self._policy is not None:  # else there is nothing to keep yet
            self._policy = replace(self._policy, **{name: each for name, each in changes.items() if each is not None})

    def begin_start(self) -> KeepPolicy:
        """The policy for a new start: of those who wait for it. Others send theirs again."""
        if self._waiting:
            self._policy = functools.reduce(KeepPolicy.merged_with, self._waiting)
        return self.policy

    @contextmanager
    def waiting(self, policy: KeepPolicy, send: Send) -> Iterator[None]:
        """Meanwhile this caller waits, and is sent the start's progress."""
        self._waiting.append(policy)
        self._listeners.add(send)
        try:
            yield
        finally:
            self._waiting.remove(policy)
            self._listeners.discard(send)

    def report(self, progress: Progress) -> None:
        """Send the start's progress to those who wait."""
        for send in self._listeners:
            send(StartProgress(progress))
