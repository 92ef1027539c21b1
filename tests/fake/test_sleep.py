"""An engine that gives its GPU memory back between requests."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineSettings, EngineState, SettingsError
from shared_engine.launch import spec as command
from shared_engine.launch.spec import engine_spec
from tests.fake.conftest import MakeEngine
from tests.support.callers import (
    ANSWER,
    calls,
    directory_of,
    hello,
    journal,
    log_of,
    server_group,
    server_pid,
    transitions,
    wait_for,
)
from tests.support.processes import all_processes, any_exists
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def sleeper(fake_engine: MakeEngine, fake_cuda_python: str) -> MakeEngine:
    """Makes engines that sleep after 0.2 s."""

    def make(faults: dict[str, Any] | None = None, **settings: Any) -> Engine:
        return fake_engine(faults, **{"python": fake_cuda_python, "sleep_after_s": 0.2, **settings})

    return make


def asleep(engine: Engine) -> Engine:
    engine.warmup()
    wait_for(engine, EngineState.ASLEEP)
    return engine


def test_an_idle_engine_falls_asleep_and_leaves_memory_later(sleeper: MakeEngine, tmp_path: Path) -> None:
    device = tmp_path / "device"
    engine = asleep(sleeper({"memory": str(device)}, sleep_after_s=0.3, idle_ttl_s=1.5))
    with device.open("w") as neighbour:
        fcntl.flock(neighbour, fcntl.LOCK_EX | fcntl.LOCK_NB)
    group = server_group(engine)
    wait_for(engine, EngineState.STANDBY)
    assert not any_exists(group)
    assert transitions(engine)[-3:] == ["ready -> asleep", "asleep -> stopping", "stopping -> standby"]
    assert hello(engine) == ANSWER


@pytest.mark.smoke
def test_a_request_wakes_it_without_a_new_start(sleeper: MakeEngine, tmp_path: Path) -> None:
    engine = asleep(sleeper({"journal": str(tmp_path / "journal")}))
    assert hello(engine) == ANSWER
    assert engine.status().starts == 1
    assert [event for event, *_ in journal(tmp_path / "journal")][:4] == ["begin", "ready", "asleep", "awake"]
    wait_for(engine, EngineState.ASLEEP)


def test_all_who_wait_for_a_slow_wake_get_their_lease_when_it_is_awake(sleeper: MakeEngine, tmp_path: Path) -> None:
    engine = asleep(sleeper({"slow_wake_s": 0.5, "journal": str(tmp_path / "journal")}, sleep_after_s=0.4))
    callers = [Engine(engine.settings.model_copy(update={"start_timeout_s": 20.0 + number})) for number in range(4)]
    with calls(*callers) as waiting, directory_of(engine).lease.open() as lease:
        wait_until(lambda: (progress := engine.status().progress) and progress.phase == "wake", 10, "the wake")
        assert engine.status().state is EngineState.ASLEEP
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(lease, fcntl.LOCK_UN)
    assert [each.result() for each in waiting] == [ANSWER] * 4
    assert engine.status().starts == 1
    assert [event for event, *_ in journal(tmp_path / "journal")].count("awake") == 1


@pytest.mark.parametrize("slow_s", [0, pytest.param(0.05, marks=pytest.mark.long)])
def test_requests_that_race_falling_asleep_are_all_answered(sleeper: MakeEngine, slow_s: float) -> None:
    engine = sleeper({"slow_sleep_s": slow_s, "slow_wake_s": slow_s}, sleep_after_s=0.05)
    moments = random.Random(0)
    for _ in range(25):
        assert hello(engine) == ANSWER
        time.sleep(moments.uniform(0.03, 0.09))  # the moment is what is tested
        with calls(engine, engine, engine) as waiting:
            pass
        assert [each.result() for each in waiting] == [ANSWER] * 3
    assert engine.status().starts == 1
    assert transitions(engine).count("ready -> asleep") > 3, "there were sleeps to race"


def test_an_engine_that_refuses_to_sleep_stays_and_leaves_on_time(sleeper: MakeEngine) -> None:
    engine = sleeper({"fail_sleep": True}, idle_ttl_s=1.2)
    engine.warmup()
    began = time.monotonic()
    wait_until(lambda: "refuses to sleep" in log_of(engine), 10, "the refusal")
    assert engine.status().state is EngineState.READY
    assert hello(engine) == ANSWER
    wait_for(engine, EngineState.STANDBY)
    assert time.monotonic() - began >= 1.2
    assert log_of(engine).count("refuses to sleep") == 1
    assert transitions(engine)[-2:] == ["ready -> stopping", "stopping -> standby"]


def test_an_engine_that_does_not_wake_is_started_anew_unseen(sleeper: MakeEngine) -> None:
    engine = asleep(sleeper({"fail_wake": True}))
    group = server_group(engine)
    assert hello(engine) == ANSWER
    assert not any_exists(group)
    assert engine.status().starts == 2
    assert "asleep -> failed" in transitions(engine)


def test_an_engine_that_dies_asleep_is_gone_whole_and_comes_back(sleeper: MakeEngine) -> None:
    engine = asleep(sleeper())
    group = server_group(engine)
    os.kill(server_pid(engine), signal.SIGKILL)
    wait_for(engine, EngineState.FAILED)
    assert not any_exists(group)
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2


@pytest.mark.parametrize("moment", ["asleep -> ready", "ready -> asleep"])
def test_an_engine_that_dies_while_it_wakes_or_falls_asleep_comes_back(sleeper: MakeEngine, moment: str) -> None:
    slow = "slow_wake_s" if moment == "asleep -> ready" else "slow_sleep_s"
    engine = sleeper({slow: 10})
    engine.warmup()
    if slow == "slow_wake_s":
        wait_for(engine, EngineState.ASLEEP)
    else:
        time.sleep(0.5)  # nobody can see from outside that it falls asleep
    with calls(engine) as waiting:
        if slow == "slow_wake_s":
            wait_until(lambda: engine.status().progress is not None, 10, "the wake")
        os.kill(server_pid(engine), signal.SIGKILL)
    assert waiting[0].result() == ANSWER
    assert engine.status().starts == 2


@pytest.mark.parametrize("end", [Engine.evict, Engine.shutdown, lambda engine: engine.shutdown(force=True)])
def test_a_sleeping_engine_can_be_ended(sleeper: MakeEngine, end: Callable[[Engine], None]) -> None:
    engine = asleep(sleeper())
    everything = all_processes(engine)
    group = server_group(engine)
    end(engine)
    assert not any_exists(group if end is Engine.evict else everything)
    assert hello(engine) == ANSWER


# ---- settings


def test_sleep_on_a_cpu_build_is_warned_of_once_and_has_no_effect(
    fake_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    command._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "shared_engine"):
        engines = [fake_engine(sleep_after_s=0.1) for _ in range(2)]
        for engine in engines:
            assert not {"--enable-sleep-mode"} & set(engine_spec(engine.settings).argv)
    assert [record.getMessage() for record in caplog.records if "sleep_after_s" in record.getMessage()] == [
        "sleep_after_s has no effect on a CPU build of vLLM: the weights are in RAM anyway"
    ]
    assert hello(engines[0]) == ANSWER


@pytest.mark.parametrize("idle_ttl_s", [5, 4.9])
def test_sleep_that_would_come_after_the_end_is_refused(fake_model: str, idle_ttl_s: float) -> None:
    with pytest.raises(SettingsError, match=r"sleep_after_s = 5 must be below idle_ttl_s"):
        EngineSettings(model=fake_model, sleep_after_s=5, idle_ttl_s=idle_ttl_s)


def test_flag_and_routes_of_sleep_are_there_only_when_asked_for(fake_cuda_python: str, fake_model: str) -> None:
    def has(**settings: Any) -> tuple[bool, str | None]:
        spec = engine_spec(EngineSettings(model=fake_model, python=fake_cuda_python, **settings))
        return "--enable-sleep-mode" in spec.argv, spec.environment.get("VLLM_SERVER_DEV_MODE")

    assert has() == (False, None)
    assert has(sleep_after_s=5) == (True, "1")


def test_with_wishes_that_differ_the_one_who_wants_it_awake_wins(sleeper: MakeEngine) -> None:
    engine = asleep(sleeper())
    Engine(engine.settings.model_copy(update={"sleep_after_s": 30})).warmup()
    with pytest.raises(AssertionError, match="for sleep"):
        wait_until(lambda: engine.status().state is not EngineState.READY, 0.8, "sleep")


@pytest.mark.long
def test_a_wake_that_hangs_is_ended_when_its_time_is_over_and_a_new_start_follows(sleeper: MakeEngine) -> None:
    engine = asleep(sleeper({"slow_wake_s": 30}, stall_timeout_s=1.5))
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2
