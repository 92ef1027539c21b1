"""Wishes of several callers, and what they mean for an engine nobody uses."""

from __future__ import annotations

import math

import pytest

from shared_engine.runtime.keep_policy import IdleStep, KeepPolicy, idle_step
from shared_engine.runtime.messages import EnsureReady, decode, encode

INF = math.inf
KEEP, SLEEP, EVICT = IdleStep.KEEP, IdleStep.SLEEP, IdleStep.EVICT


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (KeepPolicy(idle_ttl_s=5), KeepPolicy(idle_ttl_s=60), KeepPolicy(idle_ttl_s=60)),
        (KeepPolicy(idle_ttl_s=INF), KeepPolicy(idle_ttl_s=60), KeepPolicy(idle_ttl_s=INF)),
        (KeepPolicy(sleep_after_s=5), KeepPolicy(), KeepPolicy(sleep_after_s=INF)),
        (KeepPolicy(start_timeout_s=1), KeepPolicy(start_timeout_s=20), KeepPolicy(start_timeout_s=20)),
        (KeepPolicy(stall_timeout_s=20), KeepPolicy(stall_timeout_s=1), KeepPolicy(stall_timeout_s=20)),
        (KeepPolicy(standby_ttl_s=0), KeepPolicy(standby_ttl_s=9), KeepPolicy(standby_ttl_s=9)),
        (KeepPolicy(pinned=True), KeepPolicy(pinned=False), KeepPolicy(pinned=True)),
        (KeepPolicy(max_loaded_engines=3), KeepPolicy(max_loaded_engines=1), KeepPolicy(max_loaded_engines=1)),
        (KeepPolicy(max_loaded_engines=1), KeepPolicy(max_loaded_engines=0), KeepPolicy(max_loaded_engines=0)),
    ],
)
def test_the_longer_wish_holds_and_the_last_number_of_engines(
    one: KeepPolicy, other: KeepPolicy, both: KeepPolicy
) -> None:
    assert one.merged_with(other) == both


@pytest.mark.parametrize(
    ("pinned", "idle_ttl_s", "stays_s"), [(True, INF, 1800), (True, 60, 60), (False, INF, INF), (False, 60, 60)]
)
def test_an_engine_that_is_unpinned_may_leave(pinned: bool, idle_ttl_s: float, stays_s: float) -> None:
    policy = KeepPolicy(pinned=pinned, idle_ttl_s=idle_ttl_s, stall_timeout_s=9)
    assert policy.unpinned() == KeepPolicy(idle_ttl_s=stays_s, stall_timeout_s=9)


def test_an_infinite_wish_survives_the_way_to_the_supervisor() -> None:
    policy = KeepPolicy(idle_ttl_s=INF, standby_ttl_s=INF, start_timeout_s=INF)
    assert decode(encode(EnsureReady(policy, {}))).policy == policy


@pytest.mark.parametrize(
    ("policy", "idle_s", "is_asleep", "can_sleep", "wanted"),
    [
        (KeepPolicy(idle_ttl_s=10), 0, False, False, (KEEP, 10)),
        (KeepPolicy(idle_ttl_s=10), 4, False, False, (KEEP, 6)),
        (KeepPolicy(idle_ttl_s=10), 10, False, False, (EVICT, 0)),
        (KeepPolicy(idle_ttl_s=INF), 1e9, False, False, (KEEP, INF)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 1, False, True, (KEEP, 2)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, False, True, (SLEEP, 0)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, False, False, (KEEP, 7)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, True, True, (KEEP, 7)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 12, True, True, (EVICT, 0)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 12, False, True, (EVICT, 0)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=10), 9, False, True, (KEEP, 1)),
        (KeepPolicy(idle_ttl_s=INF, sleep_after_s=3), 3, False, True, (SLEEP, 0)),
        (KeepPolicy(idle_ttl_s=INF, sleep_after_s=3), 99, True, True, (KEEP, INF)),
        (KeepPolicy(idle_ttl_s=INF, sleep_after_s=INF), 99, False, True, (KEEP, INF)),
    ],
)
def test_step_of_an_idle_engine(
    policy: KeepPolicy, idle_s: float, is_asleep: bool, can_sleep: bool, wanted: tuple[IdleStep, float]
) -> None:
    assert idle_step(policy, idle_s, is_asleep=is_asleep, can_sleep=can_sleep) == wanted
