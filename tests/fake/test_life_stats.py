"""What an engine's record says of all its starts and ends."""

from __future__ import annotations

import os
import signal

import pytest

from shared_engine import Engine, EngineDiedError, EngineStartError, EngineState
from shared_engine.prometheus import EnginesCollector
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO, hello, server_pid, supervisor_pid, wait_for
from tests.support.processes import all_processes, any_exists
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
TOKENS = 9


@pytest.mark.smoke
def test_starts_returns_and_evictions_are_counted_over_supervisors(fake_engine: MakeEngine) -> None:
    engine = fake_engine(standby_ttl_s=60)
    assert engine.stats().life == Engine(engine.settings).stats().life
    assert hello(engine) == ANSWER
    stats = engine.stats()
    assert stats.life is not None
    assert (stats.life.starts, stats.life.returns, stats.life.evictions) == (1, 0, {})
    assert stats.life.start_seconds["import"] > 0
    assert sum(stats.life.start_seconds.values()) == pytest.approx(engine.status().start_s, abs=0.5)
    assert stats.counters["generation_tokens"] == TOKENS
    engine.evict()
    assert hello(engine) == ANSWER
    engine.shutdown()
    stats = engine.stats()
    assert stats.life is not None
    assert (stats.life.starts, stats.life.returns) == (2, 1)
    assert stats.life.evictions == {"asked": 1, "shutdown": 1}
    assert stats.counters["generation_tokens"] == 2 * TOKENS, "of servers that are gone"
    assert hello(engine) == ANSWER
    stats = engine.stats()
    assert stats.life is not None
    assert (stats.life.starts, stats.life.returns) == (3, 1), "another supervisor goes on counting"
    assert stats.counters["generation_tokens"] == 3 * TOKENS


def test_an_idle_engine_and_one_that_makes_room_tell_why_they_left(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=0.5)
    assert hello(engine) == ANSWER
    wait_for(engine, EngineState.STANDBY)
    stats = engine.stats()
    assert stats.life is not None
    assert stats.life.evictions == {"idle": 1}


def test_sleep_and_wake_are_counted(fake_engine: MakeEngine, fake_cuda_python: str) -> None:
    engine = fake_engine(python=fake_cuda_python, sleep_after_s=0.5, idle_ttl_s=60)
    assert hello(engine) == ANSWER
    wait_for(engine, EngineState.ASLEEP)
    assert hello(engine) == ANSWER
    stats = engine.stats()
    assert stats.life is not None
    assert (stats.life.starts, stats.life.returns) == (1, 1)
    assert stats.life.evictions["sleep"] >= 1
    assert stats.life.start_seconds["wake"] > 0


def test_deaths_and_failed_starts_are_counted_by_kind(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.2})
    assert hello(engine) == ANSWER
    stream = engine.stream_chat(HELLO)
    next(stream)
    os.kill(server_pid(engine), signal.SIGKILL)
    with pytest.raises(EngineDiedError):
        list(stream)
    wait_until(lambda: (life := engine.stats().life) is not None and life.failures == {"killed": 1}, 10, "the count")
    failing = fake_engine({"exit_at": "start", "exit_code": 3})
    with pytest.raises(EngineStartError):
        failing.chat(HELLO)
    life = failing.stats().life
    assert life is not None
    assert (life.starts, life.failures) == (0, {"start": 1})


@pytest.mark.long
def test_what_a_killed_supervisor_knew_is_not_lost(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    assert hello(engine) == ANSWER
    everything = all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGKILL)
    wait_until(lambda: not any_exists(everything), 10, "all to end")
    assert hello(engine) == ANSWER
    life = engine.stats().life
    assert life is not None
    assert life.starts == 2


def test_vllms_own_metrics_are_passed_on_with_the_engines_key(fake_engine: MakeEngine) -> None:
    first, second = fake_engine(), fake_engine()
    assert (hello(first), hello(second)) == (ANSWER, ANSWER)
    (family,) = (each for each in EnginesCollector().collect() if each.name == "vllm:generation_tokens")
    found = {sample.labels["engine_key"]: sample.value for sample in family.samples if sample.name.endswith("_total")}
    assert found == {first.status().key: TOKENS, second.status().key: TOKENS}
    assert all(sample.labels["engine"] == "0" for sample in family.samples)
