"""Wishes of several callers, and what they mean for an engine nobody uses."""

from __future__ import annotations

import json
import math

import pytest

from shared_engine.runtime.policy import Policy, idle_step

INF = math.inf


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Policy(idle_ttl_s=5), Policy(idle_ttl_s=60), Policy(idle_ttl_s=60)),
        (Policy(idle_ttl_s=INF), Policy(idle_ttl_s=60), Policy(idle_ttl_s=INF)),
        (Policy(sleep_after_s=5), Policy(), Policy(sleep_after_s=INF)),
        (Policy(start_timeout_s=1), Policy(start_timeout_s=20), Policy(start_timeout_s=20)),
        (Policy(stall_timeout_s=20), Policy(stall_timeout_s=1), Policy(stall_timeout_s=20)),
        (Policy(standby_ttl_s=0), Policy(standby_ttl_s=9), Policy(standby_ttl_s=9)),
        (Policy(pinned=True), Policy(pinned=False), Policy(pinned=True)),
        (Policy(max_loaded_engines=3), Policy(max_loaded_engines=1), Policy(max_loaded_engines=1)),
        (Policy(max_loaded_engines=1), Policy(max_loaded_engines=0), Policy(max_loaded_engines=0)),
    ],
)
def test_the_longer_wish_holds_and_the_last_number_of_engines(one: Policy, other: Policy, both: Policy) -> None:
    assert one.widened(other) == both


def test_an_infinite_wish_survives_the_way_to_the_supervisor() -> None:
    policy = Policy(idle_ttl_s=INF, standby_ttl_s=INF, start_timeout_s=INF)
    assert Policy(**json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize(
    ("policy", "idle_s", "is_asleep", "can_sleep", "wanted"),
    [
        (Policy(idle_ttl_s=10), 0, False, False, (None, 10)),
        (Policy(idle_ttl_s=10), 4, False, False, (None, 6)),
        (Policy(idle_ttl_s=10), 10, False, False, ("evict", 0)),
        (Policy(idle_ttl_s=INF), 1e9, False, False, (None, INF)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 1, False, True, (None, 2)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 3, False, True, ("sleep", 0)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 3, False, False, (None, 7)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 3, True, True, (None, 7)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 12, True, True, ("evict", 0)),
        (Policy(idle_ttl_s=10, sleep_after_s=3), 12, False, True, ("evict", 0)),
        (Policy(idle_ttl_s=10, sleep_after_s=10), 9, False, True, (None, 1)),
        (Policy(idle_ttl_s=INF, sleep_after_s=3), 3, False, True, ("sleep", 0)),
        (Policy(idle_ttl_s=INF, sleep_after_s=3), 99, True, True, (None, INF)),
        (Policy(idle_ttl_s=INF, sleep_after_s=INF), 99, False, True, (None, INF)),
    ],
)
def test_step_of_an_idle_engine(
    policy: Policy, idle_s: float, is_asleep: bool, can_sleep: bool, wanted: tuple[str | None, float]
) -> None:
    assert idle_step(policy, idle_s, is_asleep=is_asleep, can_sleep=can_sleep) == wanted
