"""Those who wait for an engine: their merged policy, the limit of a start, and what they are told."""

from __future__ import annotations

from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import Reply, StartProgress
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.supervisor.callers import Callers

SHORT, LONG = KeepPolicy(idle_ttl_s=1, start_timeout_s=0.2), KeepPolicy(idle_ttl_s=60, start_timeout_s=30)


def ignore(_: Reply) -> None:
    pass


def test_policies_merge_and_a_new_start_forgets_those_who_left() -> None:
    callers = Callers()
    assert not callers.have_asked
    callers.adopt(LONG, {"A": "1"})
    callers.adopt(SHORT, {"A": "2"})
    assert callers.policy.idle_ttl_s == 60
    assert callers.environment == {"A": "2"}
    with callers.waiting(SHORT, ignore):
        assert callers.are_waiting
        assert callers.begin_start() == SHORT
    assert not callers.are_waiting
    assert callers.begin_start() == SHORT, "with nobody waiting the last policy holds"


def test_what_is_to_be_kept_otherwise_holds_until_a_longer_wish_or_the_next_start() -> None:
    callers = Callers()
    callers.keep(idle_ttl_s=0, pinned=True)
    assert not callers.have_asked, "there was nothing to keep"
    callers.adopt(LONG, {})
    callers.keep(idle_ttl_s=0, pinned=None)
    assert callers.kept == {"pinned": False, "idle_ttl_s": 0}
    assert callers.policy.start_timeout_s == LONG.start_timeout_s
    callers.adopt(SHORT, {})
    assert callers.policy.idle_ttl_s == SHORT.idle_ttl_s
    callers.keep(idle_ttl_s=None, pinned=True)
    assert callers.kept == {"pinned": True, "idle_ttl_s": SHORT.idle_ttl_s}
    with callers.waiting(LONG, ignore):
        assert callers.begin_start() == LONG


def test_pinned_is_known_before_anybody_asked() -> None:
    callers = Callers()
    assert not callers.is_pinned
    callers.adopt(KeepPolicy(pinned=True), {})
    assert callers.is_pinned


def test_all_who_wait_are_told_and_nobody_else() -> None:
    callers, told = Callers(), {"one": [], "two": []}  # type: ignore[var-annotated]
    progress = Progress(StartPhase.WEIGHTS, 1, 2)
    with callers.waiting(SHORT, told["one"].append):
        with callers.waiting(LONG, told["two"].append):
            callers.report(progress)
        callers.report(progress)
    callers.report(progress)
    assert told == {"one": [StartProgress(progress)] * 2, "two": [StartProgress(progress)]}
