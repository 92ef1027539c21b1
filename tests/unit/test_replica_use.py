"""Which replicas are started and get requests: without engines; their starts end when the test says so."""

from __future__ import annotations

import os
import random
import time

import pytest

from shared_engine.errors import EngineStartError
from shared_engine.pool.growth import CALM_S
from shared_engine.pool.pool import FIRST_OUT_S, Fault, Member
from shared_engine.request import replicas as module
from shared_engine.request.replicas import Replicas, replicas_of

NAMES = ("a", "b", "c")
TAKES = 4


def lazy() -> Replicas:
    return Replicas(NAMES, TAKES, starts_all=False)


def to_start(replicas: Replicas, now: float) -> list[str]:
    return list(replicas.to_start(now))


def started(replicas: Replicas, *names: str, error: Exception | None = None) -> None:
    for name in names:
        start = replicas.starts[name]
        replicas.ended(name, start, error)
        assert start.result() is error


def in_use(replicas: Replicas, now: float) -> list[str]:
    replicas.to_start(now)
    return [member.name for member in replicas.pool.members.values() if not member.is_draining]


def take(replicas: Replicas, count: int, now: float) -> list[Member]:
    taken = [replicas.pool.choose(now) for _ in range(count)]
    assert None not in taken
    return [member for member in taken if member is not None]


def test_the_first_request_starts_the_first_and_others_wait_for_that_one() -> None:
    replicas, now = lazy(), time.monotonic()
    assert to_start(replicas, now) == ["a"]
    assert to_start(replicas, now) == [], "it is under way"
    assert replicas.pool.choose(now) is None
    started(replicas, "a")
    assert in_use(replicas, now) == ["a"]
    assert to_start(replicas, now) == []


def test_requests_that_wait_for_the_first_start_the_next_ones_too() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.waiting = 2 * TAKES
    assert to_start(replicas, now) == ["a", "b", "c"]


def test_what_is_in_flight_opens_them_one_by_one_and_calm_closes_the_last() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.to_start(now)
    started(replicas, "a")
    assert in_use(replicas, now) == ["a"]
    taken = take(replicas, TAKES, now)
    assert to_start(replicas, now) == ["b"]
    assert in_use(replicas, now) == ["a"], "b is not ready"
    started(replicas, "b")
    assert in_use(replicas, now) == ["a", "b"]
    for member in taken:
        replicas.pool.ended(member)
    assert in_use(replicas, now + 1) == ["a", "b"]
    assert in_use(replicas, now + 1 + CALM_S) == ["a"]
    taken = take(replicas, TAKES, now + 1 + CALM_S)
    assert in_use(replicas, now + 1 + CALM_S) == ["a", "b"], "it is ready still"


def test_all_are_started_and_used_where_that_is_wanted() -> None:
    replicas, now = Replicas(NAMES, TAKES, starts_all=True), time.monotonic()
    assert to_start(replicas, now) == list(NAMES)
    started(replicas, "c")
    assert in_use(replicas, now) == ["c"], "the first that is ready"
    started(replicas, "a", "b")
    assert in_use(replicas, now) == list(NAMES)
    assert not replicas.is_look_due(now)


def test_a_conversation_leaves_one_that_has_all_that_it_takes() -> None:
    replicas, now = Replicas(NAMES, TAKES, starts_all=True), time.monotonic()
    replicas.to_start(now)
    started(replicas, *NAMES)
    replicas.to_start(now)
    taken = [replicas.pool.choose(now, key="one conversation") for _ in range(TAKES + 1)]
    assert taken[0] is not None
    assert taken[:TAKES] == [taken[0]] * TAKES
    assert taken[TAKES] is not taken[0]


def test_one_that_is_gone_is_started_again_only_where_it_is_needed() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.waiting = TAKES
    replicas.to_start(now)
    replicas.waiting = 0
    started(replicas, "a", "b")
    assert in_use(replicas, now) == ["a", "b"]
    assert replicas.gone(replicas.pool.members["a"])
    assert not replicas.gone(replicas.pool.members["a"]), "of all its requests one tells"
    assert to_start(replicas, now) == ["a"], "two are needed"
    assert in_use(replicas, now) == ["b"]
    started(replicas, "a")
    assert in_use(replicas, now) == ["a", "b"]
    replicas.gone(replicas.pool.members["a"])
    assert to_start(replicas, now + CALM_S) == [], "one is needed, and b is ready"
    assert in_use(replicas, now + CALM_S) == ["b"]
    replicas.saw("a", (0, 0))
    assert in_use(replicas, now + CALM_S) == ["a"], "somebody else has started it: as other processes do, the first"


def test_a_start_that_fails_is_tried_again_after_a_time_that_grows(caplog: pytest.LogCaptureFixture) -> None:
    replicas, now = lazy(), time.monotonic()
    error = EngineStartError("no memory")
    replicas.to_start(now)
    started(replicas, "a", error=error)
    assert to_start(replicas, time.monotonic()) == ["b"], "the next one is tried in its place"
    assert caplog.text == ""
    started(replicas, "b")
    replicas.waiting = TAKES
    assert to_start(replicas, time.monotonic()) == ["c"]
    started(replicas, "c", error=error)
    assert "replica c did not start, and the others go on: no memory" in caplog.text
    waits = []
    for _ in range(3):
        failed = min(member.out_until for member in replicas.pool.members.values() if member.out_until)
        assert to_start(replicas, failed - 0.01) == []
        (name,) = to_start(replicas, failed)
        started(replicas, name, error=error)
        waits.append(round(replicas.pool.members[name].out_until - time.monotonic()))
    assert max(waits) >= 2 * FIRST_OUT_S


def test_where_all_have_failed_the_one_that_returns_first_is_tried_at_once() -> None:
    replicas, now = lazy(), time.monotonic()
    for name in NAMES:
        assert to_start(replicas, now) == [name]
        started(replicas, name, error=EngineStartError("no"))
    assert to_start(replicas, time.monotonic()) == ["a"]
    started(replicas, "a")
    assert replicas.pool.members["a"].last_error == ""
    assert in_use(replicas, time.monotonic()) == ["a"]


def test_one_that_is_left_out_has_another_used_in_its_place_and_is_tried_again() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.to_start(now)
    started(replicas, "a")
    assert in_use(replicas, now) == ["a"]
    (member,) = take(replicas, 1, now)
    replicas.pool.failed(member, Fault.BUSY, now, "no room")
    replicas.pool.ended(member)
    assert to_start(replicas, now) == ["b"]
    started(replicas, "b")
    assert in_use(replicas, now) == ["b"]
    assert in_use(replicas, now + FIRST_OUT_S) == ["a"], "its time is over"
    assert take(replicas, 1, now + FIRST_OUT_S) == [member]
    assert in_use(replicas, now + FIRST_OUT_S) == ["b"], "while one request tries it"
    replicas.pool.answered(member)
    assert in_use(replicas, now + FIRST_OUT_S) == ["a"]


def test_one_that_says_that_it_is_full_has_the_next_one_used_too() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.to_start(now)
    started(replicas, "a")
    replicas.refused(now)
    assert to_start(replicas, now) == ["b"]


def test_other_processes_requests_count_as_they_are_seen() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.to_start(now)
    started(replicas, "a")
    replicas.saw("a", (TAKES, 0))
    now = time.monotonic()
    assert to_start(replicas, now) == ["b"]
    started(replicas, "b")
    assert in_use(replicas, now) == ["a", "b"]
    assert in_use(replicas, now + module.SEEN_S + CALM_S + 1) == ["a"], "a look is not believed for ever"
    replicas.saw("a", None)
    assert in_use(replicas, now) == ["b"]


def test_looks_are_taken_once_in_a_while_by_one_request() -> None:
    replicas, now = lazy(), time.monotonic()
    assert [replicas.is_look_due(now) for _ in range(3)] == [True, False, False]
    assert replicas.is_look_due(now + module.LOOK_EVERY_S)
    assert not Replicas(("a",), TAKES, starts_all=False).is_look_due(now)


def test_a_forked_child_begins_anew() -> None:
    replicas, now = lazy(), time.monotonic()
    replicas.to_start(now)
    started(replicas, "a")
    in_use(replicas, now)
    take(replicas, 2, now)
    pid = os.fork()
    if pid == 0:
        is_new = to_start(replicas, now) == ["a"] and not any(each.in_flight for each in replicas.pool.members.values())
        os._exit(0 if is_new else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert in_use(replicas, now) == ["a"]


def test_objects_of_the_same_engines_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})
    assert replicas_of("key", NAMES, TAKES, starts_all=False) is replicas_of("key", NAMES, TAKES, starts_all=False)
    assert replicas_of("other", NAMES, TAKES, starts_all=False) is not replicas_of(
        "key", NAMES, TAKES, starts_all=False
    )


@pytest.mark.parametrize("starts_all", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.slow
def test_whatever_happens_there_is_one_to_ask_or_one_that_starts(starts_all: bool, seed: int) -> None:
    """Requests, deaths, evictions, failed starts and looks in any order, on a clock of the test's own."""
    chance, now = random.Random(seed), time.monotonic()
    replicas = Replicas(NAMES, TAKES, starts_all=starts_all)
    members, under_way = replicas.pool.members, list[Member]()

    def is_ready(member: Member) -> bool:
        return replicas.has_another(set(NAMES) - {member.name})

    for _ in range(3000):
        now += chance.expovariate(5)
        before = set(replicas.starts)
        new = set(to_start(replicas, now))
        assert not new & before
        assert not any(is_ready(members[name]) for name in new)
        able = [each for each in members.values() if is_ready(each) and each.out_until <= now]
        member = replicas.pool.choose(now)
        if able:
            assert member in able
        else:
            assert replicas.starts or any(map(is_ready, members.values()))
        if member is not None:
            under_way.append(member)
        event = chance.random()
        if under_way and event < 0.7:
            ended = under_way.pop(chance.randrange(len(under_way)))
            fault = chance.choice((None, None, None, *Fault))
            if fault is None:
                replicas.pool.answered(ended)
            elif fault is not Fault.DIED or replicas.gone(ended):
                replicas.pool.failed(ended, fault, now, "why")
            replicas.pool.ended(ended)
        elif event < 0.8:
            replicas.saw(chance.choice(NAMES), chance.choice((None, (chance.randrange(9), chance.randrange(3)))))
        for name in list(replicas.starts):
            if chance.random() < 0.4:
                replicas.ended(name, replicas.starts[name], chance.choice((None, EngineStartError("no"))))
    for member in under_way:
        replicas.pool.ended(member)
    assert {member.in_flight for member in members.values()} == {0}
