"""Real vLLM on the CPU, one engine at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.engines import ended_engines

_seeds = itertools.count(1000)


def _makes_engines(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    with ended_engines() as made:

        def make(**settings: Any) -> Engine:
            # vLLM's seed has no effect on greedy answers, and makes the key another one.
            made.append(Engine(**{**tiny_chat, "seed": next(_seeds), **settings}))
            return made[-1]

        yield make


@pytest.fixture
def own_engine(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    """Makes engines that no other test has; they are gone when the test ends."""
    yield from _makes_engines(tiny_chat)


@pytest.fixture(scope="module")
def module_engine(tiny_chat: dict[str, Any]) -> Iterator[Callable[..., Engine]]:
    """The same for all tests of a file."""
    yield from _makes_engines(tiny_chat)
