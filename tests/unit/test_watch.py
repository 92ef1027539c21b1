"""What a look at an idle engine decides."""

from __future__ import annotations

import pytest

from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.supervisor.watch import LONGEST_WAIT_S, Sight, Step, step_when_idle

LONG = KeepPolicy(idle_ttl_s=1e9, stall_timeout_s=1e9)


@pytest.mark.parametrize(
    ("policy", "idle_s", "is_asleep", "can_sleep", "grace_s", "wanted"),
    [
        (KeepPolicy(idle_ttl_s=10), 4, False, False, 0, Sight(Step.WAIT, wait_s=6)),
        (KeepPolicy(idle_ttl_s=10), 10, False, False, 0, Sight(Step.EVICT, "idle for 10.0 s")),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, False, True, 0, Sight(Step.SLEEP, "idle for 3.0 s")),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, True, True, 0, Sight(Step.WAIT, wait_s=7)),
        (KeepPolicy(idle_ttl_s=10, sleep_after_s=3), 3, False, False, 0, Sight(Step.WAIT, wait_s=7)),
        # Those who waited for it have time to take their lease, however short they want it kept.
        (KeepPolicy(idle_ttl_s=0.1), 0.4, False, False, 0.6, Sight(Step.WAIT, wait_s=0.6)),
        (KeepPolicy(idle_ttl_s=9, sleep_after_s=0.1), 0.4, False, True, 0.6, Sight(Step.WAIT, wait_s=0.6)),
        # Nobody says when requests begin: a hang must be found in time.
        (KeepPolicy(idle_ttl_s=60, stall_timeout_s=4), 0, False, False, 0, Sight(Step.WAIT, wait_s=1)),
        (KeepPolicy(idle_ttl_s=60, stall_timeout_s=1e9), 0, False, False, 0, Sight(Step.WAIT, wait_s=10)),
    ],
)
def test_step(
    policy: KeepPolicy, idle_s: float, is_asleep: bool, can_sleep: bool, grace_s: float, wanted: Sight
) -> None:
    sight = step_when_idle(policy, idle_s=idle_s, is_asleep=is_asleep, can_sleep=can_sleep, grace_s=grace_s)
    assert (sight.step, sight.why) == (wanted.step, wanted.why)
    assert sight.wait_s == pytest.approx(wanted.wait_s)


def test_it_looks_again_at_last() -> None:
    sight = step_when_idle(LONG, idle_s=0, is_asleep=False, can_sleep=False, grace_s=0)
    assert 0 < sight.wait_s <= LONGEST_WAIT_S
