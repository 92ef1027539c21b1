"""Which member a request goes to: pure, on a clock of the test's own."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from shared_engine.pool.pool import BOUND_COUNT, FIRST_OUT_S, LACKS_S, MAX_OUT_S, TRIAL_S, Fault, Member, Pool
from shared_engine.pool.ring import Ring

NOW = 100.0


def pool_of(*names: str, **weights: float) -> Pool:
    pool = Pool()
    for name in names:
        pool.add(name)
    for name, weight in weights.items():
        pool.add(name, weight)
    return pool


def chosen(pool: Pool, now: float = NOW, **options: object) -> Member:
    member = pool.choose(now, **options)  # type: ignore[arg-type]
    assert member is not None
    return member


def end(pool: Pool, member: Member) -> None:
    pool.answered(member)
    pool.ended(member)


# ---- least in flight


def test_the_one_with_the_least_in_flight_is_next() -> None:
    pool = pool_of("a", "b", "c")
    taken = [chosen(pool) for _ in range(7)]
    assert Counter(member.name for member in taken) in (
        Counter(a=3, b=2, c=2),
        Counter(b=3, a=2, c=2),
        Counter(c=3, a=2, b=2),
    )
    for member in taken:
        if member.name == "b":
            end(pool, member)
    assert chosen(pool).name == "b"


def test_equals_take_turns() -> None:
    pool = pool_of("a", "b", "c")
    names = []
    for _ in range(9):
        member = chosen(pool)
        names.append(member.name)
        end(pool, member)
    assert Counter(names) == Counter(a=3, b=3, c=3)


@pytest.mark.parametrize("in_flight", [1, 30])
def test_weights_share_requests_one_at_a_time_and_many_at_once(in_flight: int) -> None:
    pool = pool_of(a=3.0, b=1.0)
    counts: Counter[str] = Counter()
    under_way: list[Member] = []
    for _ in range(400):
        member = chosen(pool)
        counts[member.name] += 1
        under_way.append(member)
        if len(under_way) >= in_flight:
            end(pool, under_way.pop(0))
    assert counts["a"] == pytest.approx(300, abs=12)


def test_counts_are_exact_whatever_happens() -> None:
    chance, pool, now = random.Random(3), pool_of(*map(str, range(20))), NOW
    under_way: list[Member] = []
    for number in range(5000):
        now += chance.expovariate(20)
        key = None if chance.random() < 0.5 else f"session {chance.randrange(50)}"
        member = pool.choose(now, key=key)
        if member is not None:
            under_way.append(member)
        while under_way and chance.random() < 0.52:
            ended = under_way.pop(chance.randrange(len(under_way)))
            if chance.random() < 0.1:
                pool.failed(ended, chance.choice(list(Fault)), now, "failed")
            else:
                pool.answered(ended)
            pool.ended(ended)
        if number % 500 == 0:
            name = f"new {number}"
            pool.add(name)
    counts = Counter(member.name for member in under_way)
    assert {member.name: member.in_flight for member in pool.members.values() if member.in_flight} == counts
    least = min(member.load for member in pool.members.values() if member.may_take(now, "", frozenset()))
    assert chosen(pool, now).in_flight == least + 1


# ---- affinity


def test_a_key_goes_to_one_member_and_keys_spread() -> None:
    pool = pool_of("a", "b", "c", "d")
    homes = {}
    for number in range(400):
        member = chosen(pool, key=f"session {number}")
        homes[number] = member.name
        end(pool, member)
    for number in range(400):
        member = chosen(pool, key=f"session {number}")
        assert member.name == homes[number]
        end(pool, member)
    assert all(60 < count < 150 for count in Counter(homes.values()).values())


def test_a_keys_member_is_left_when_it_has_much_more_than_the_least() -> None:
    pool = pool_of("a", "b")
    names = [chosen(pool, key="one session").name for _ in range(40)]
    home = names[0]
    assert names[:BOUND_COUNT] == [home] * BOUND_COUNT
    loads = {member.name: member.in_flight for member in pool.members.values()}
    other = next(name for name in loads if name != home)
    assert 0 < loads[home] - loads[other] <= BOUND_COUNT


def test_members_that_take_few_at_once_are_left_sooner() -> None:
    pool = Pool(bound_count=2)
    pool.add("a")
    pool.add("b")
    names = [chosen(pool, key="one session").name for _ in range(6)]
    assert names[0] == names[1] != names[2]
    assert sorted(Counter(names).values()) in ([2, 4], [3, 3])


def test_members_that_come_and_go_move_only_their_own_keys() -> None:
    ring = Ring()
    for name in "abcd":
        ring.add(name)
    keys = [f"session {number}" for number in range(300)]
    before = {key: next(ring.preferred(key)) for key in keys}
    ring.remove("b")
    after = {key: next(ring.preferred(key)) for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == "b"}
    ring.add("e")
    assert {next(ring.preferred(key)) for key in keys if next(ring.preferred(key)) != after[key]} == {"e"}


def test_keys_of_a_member_that_is_out_go_to_one_other() -> None:
    pool = pool_of("a", "b", "c")
    home = chosen(pool, key="k")
    pool.failed(home, Fault.GONE, NOW, "gone")
    pool.ended(home)
    others = set()
    for _ in range(5):
        member = chosen(pool, key="k")
        others.add(member.name)
        end(pool, member)
    assert len(others) == 1
    assert home.name not in others
    assert chosen(pool, NOW + FIRST_OUT_S, key="k").name == home.name


# ---- failures


@pytest.mark.parametrize(
    ("fault", "times"), [(Fault.GONE, 1), (Fault.BUSY, 1), (Fault.SILENT, 2), (Fault.BROKEN, 3), (Fault.DIED, 2)]
)
def test_so_many_faults_in_a_row_put_a_member_out(fault: Fault, times: int) -> None:
    pool = pool_of("a")
    for number in range(times):
        member = pool.choose(NOW)
        assert member is not None, number
        pool.failed(member, fault, NOW, "why")
        pool.ended(member)
    assert pool.choose(NOW) is None
    assert pool.members["a"].last_error == "why"
    assert pool.returns_at(NOW) == NOW + FIRST_OUT_S


def test_an_answer_in_between_begins_the_count_again() -> None:
    pool = pool_of("a")
    for _ in range(10):
        for _ in range(2):
            member = chosen(pool)
            pool.failed(member, Fault.BROKEN, NOW, "why")
            pool.ended(member)
        end(pool, chosen(pool))
    assert pool.members["a"].is_in


def test_the_time_out_grows_and_an_answer_ends_it() -> None:
    pool, now, waits = pool_of("a"), NOW, []
    for _ in range(9):
        member = chosen(pool, now)
        pool.failed(member, Fault.GONE, now, "gone")
        pool.ended(member)
        returns_at = pool.returns_at(now)
        assert returns_at is not None
        waits.append(returns_at - now)
        assert pool.choose(returns_at - 0.001) is None
        now = returns_at
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits[-1] == MAX_OUT_S
    end(pool, chosen(pool, now))
    assert pool.members["a"].is_in
    pool.failed(chosen(pool, now), Fault.GONE, now, "gone")
    assert pool.returns_at(now) == now + FIRST_OUT_S


def test_requests_that_were_sent_before_make_the_time_out_no_longer() -> None:
    pool = pool_of("a")
    under_way = [chosen(pool) for _ in range(50)]
    for member in under_way:
        pool.failed(member, Fault.GONE, NOW, "gone")
        pool.ended(member)
    assert pool.returns_at(NOW) == NOW + FIRST_OUT_S
    pool.failed(pool.members["a"], Fault.BUSY, NOW, "busy", wait_s=20)
    assert pool.returns_at(NOW) == NOW + 20, "but it may ask for more"


def test_a_member_that_takes_requests_again_has_the_least() -> None:
    pool = pool_of("a", "b")
    pool.drain("a")
    assert {chosen(pool).name for _ in range(5)} == {"b"}
    pool.resume("a")
    assert {chosen(pool).name for _ in range(5)} == {"a"}


def test_one_request_tries_a_member_that_comes_back_while_others_go_elsewhere() -> None:
    pool = pool_of("a", "b")
    first = pool.members["a"]
    while chosen(pool) is not first:
        pass
    pool.failed(first, Fault.GONE, NOW, "gone")
    pool.ended(first)
    now = NOW + FIRST_OUT_S
    names = [chosen(pool, now).name for _ in range(20)]
    assert names.count("a") == 1
    assert chosen(pool, now + TRIAL_S).name == "a", "a long answer does not keep it out for ever"
    pool.answered(first)
    assert [chosen(pool, now + TRIAL_S).name for _ in range(5)] == ["a"] * 5, "it has the least in flight"


def test_a_server_that_says_when_to_come_is_left_alone_until_then() -> None:
    pool = pool_of("a")
    member = chosen(pool)
    pool.failed(member, Fault.BUSY, NOW, "busy", wait_s=20)
    pool.ended(member)
    assert pool.choose(NOW + 19.9) is None
    assert pool.choose(NOW + 20) is member


def test_what_a_request_has_failed_on_is_not_taken_again() -> None:
    pool = pool_of("a", "b")
    assert {chosen(pool, tried={"a"}).name for _ in range(5)} == {"b"}
    assert {chosen(pool, tried={"a"}, key=f"k{number}").name for number in range(9)} == {"b"}
    assert pool.choose(NOW, tried={"a", "b"}) is None


# ---- members that differ, come and go


def test_a_model_goes_to_those_that_serve_it() -> None:
    pool = pool_of("a", "b")
    pool.lack(pool.members["a"], "m", NOW)
    assert {chosen(pool, model="m", key=f"k{number}").name for number in range(9)} == {"b"}
    assert chosen(pool, model="other").name == "a"
    pool.lack(pool.members["b"], "m", NOW)
    assert pool.choose(NOW, model="m") is None
    assert pool.returns_at(NOW, "m") is None
    assert pool.choose(NOW + LACKS_S, model="m") is not None, "it may have it by now"


def test_a_member_that_is_drained_ends_what_it_has_and_gets_no_more() -> None:
    pool = pool_of("a", "b")
    under_way = [chosen(pool) for _ in range(4)]
    pool.drain("a")
    assert {chosen(pool).name for _ in range(6)} == {"b"}
    for member in under_way:
        end(pool, member)
    assert pool.members["a"].in_flight == 0
    pool.remove("a")
    assert {chosen(pool).name for _ in range(6)} == {"b"}


def test_requests_of_a_member_that_was_removed_can_end() -> None:
    pool = pool_of("a", "b")
    taken = [chosen(pool) for _ in range(4)]
    pool.remove("a")
    for member in taken:
        end(pool, member)
    assert {chosen(pool).name for _ in range(3)} == {"b"}


def test_a_new_member_does_not_get_all_turns_until_it_has_caught_up() -> None:
    pool = pool_of("a", "b")
    for _ in range(100):
        end(pool, chosen(pool))
    pool.add("c")
    names = []
    for _ in range(9):
        member = chosen(pool)
        names.append(member.name)
        end(pool, member)
    assert Counter(names) == Counter(a=3, b=3, c=3)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_is_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Pool().add("a", weight)


def test_names_are_there_once() -> None:
    with pytest.raises(ValueError, match="a is a member already"):
        pool_of("a").add("a")
