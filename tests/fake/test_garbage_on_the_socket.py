"""The supervisor's socket takes whatever is sent to it, and goes on."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from shared_engine.runtime.messages import Evict, NotUnderstood, Shutdown, encode
from shared_engine.runtime.record import EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, Asking, complaints, hello
from tests.support.generated import NESTED

VALUES: list[Any] = [None, True, -1, 10**400, 1.5, float("nan"), float("inf"), "", "x" * 1000, [], [1], {}, {"a": {}}]


def garbage(chance: random.Random) -> bytes:
    """A line that is no message, or one with something wrong in it."""
    kinds = ["EnsureReady", "WhatBecameOf", "Evict", "MakeRoom", "Shutdown", "Ready", "Dance", ""]
    names = ["policy", "environment", "start_number", "force", "colour", "type"]
    fields = {name: chance.choice(VALUES) for name in chance.sample(names, chance.randint(1, 3))}
    line = json.dumps({"type": chance.choice(kinds), **fields}).encode() + b"\n"
    return chance.choice(
        [line, line, line, chance.randbytes(chance.randint(0, 50)) + b"\n", b"\n", line[: len(line) // 2] + b"\n"]
    )


def is_a_request(line: bytes) -> bool:
    """What the supervisor may well take for one: of these it need not survive the meaning."""
    return (
        line.startswith((b'{"type": "Shutdown"', b'{"type": "Evict"', b'{"type": "MakeRoom"')) and b"colour" not in line
    )


@pytest.mark.smoke
def test_a_supervisor_survives_whatever_it_is_sent(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    engine.warmup()
    before = engine.status()
    chance = random.Random(14)
    lines = [garbage(chance) for _ in range(200)]
    for line in [*lines, *(nested + b"\n" for nested in NESTED)]:
        if not is_a_request(line):
            assert isinstance(Asking(engine, line).answer(), NotUnderstood | type(None)), line
    for whole in (encode(Shutdown(force=True)), encode(Evict())):  # cut off: the caller has gone in the middle of it
        Asking(engine, whole[:-1]).hang_up()
    for line in (b"", b"x" * 5_000_000):
        Asking(engine, line).hang_up()
    assert hello(engine) == ANSWER
    after = engine.status()
    assert (after.state, after.supervisor_pid, after.starts) == (EngineState.READY, before.supervisor_pid, 1)
    assert complaints(engine) == []
