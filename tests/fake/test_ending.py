"""Engines that are ended at an awkward moment, or by several at once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineDiedError, EngineState, EngineStoppedError
from shared_engine.runtime.messages import (
    Evict,
    Gone,
    MakeRoom,
    NotUnderstood,
    Ready,
    Refusal,
    Refused,
    Request,
    Shutdown,
    StartFailed,
)
from shared_engine.runtime.record import FailureKind
from tests.fake.conftest import MakeEngine
from tests.support.callers import (
    ANSWER,
    SETTLE_S,
    Asking,
    calls,
    complaints,
    directory_of,
    ensure_ready,
    hello,
    log_of,
    server_group,
    server_pid,
    supervisor_pid,
    wait_for,
)
from tests.support.processes import all_processes, any_exists
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def force(engine: Engine) -> None:
    engine.shutdown(force=True)


def terminate(engine: Engine) -> None:
    os.kill(supervisor_pid(engine), signal.SIGTERM)


@pytest.fixture
def make(slow_to_end: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Engine]:
    """Makes an engine that takes its time at that moment."""

    def make_one(moment: str) -> Engine:
        once = str(tmp_path / "once")
        hang = {"import": {"hang_at": "import", "once": once}}.get(moment, {})
        monkeypatch.setenv("FAKE_VLLM_IMPORT", json.dumps(hang))
        faults: dict[str, dict[str, Any]] = {
            "start": {"hang_at": "start", "once": once},
            "sleep": {"slow_sleep_s": 30, "once": once},
            "wake": {"slow_wake_s": 30, "once": once},
        }
        sleep = {"sleep_after_s": 0.1} if moment in ("sleep", "wake") else {}
        return slow_to_end(faults.get(moment, {}), max_retries=0, **sleep)

    return make_one


def reach(engine: Engine, moment: str) -> None:
    """Before the caller who waits has called."""
    if moment not in ("import", "start"):
        engine.warmup()
    if moment == "wake":
        wait_for(engine, EngineState.ASLEEP)
    if moment == "sleep":
        time.sleep(0.4)  # nobody can see from outside that it falls asleep
    if moment == "burying":
        os.kill(server_pid(engine), signal.SIGKILL)
    if moment == "stopping":
        Asking(engine, Evict()).hang_up()
        wait_for(engine, EngineState.STOPPING)


def reached(engine: Engine, moment: str, once: Path) -> bool:
    """Once the caller has called."""
    if moment == "wake":
        progress = engine.status().progress
        return progress is not None and progress.phase == "wake"
    return moment not in ("import", "start") or once.exists()


@pytest.mark.parametrize("end", [pytest.param(force, marks=pytest.mark.long), terminate])
@pytest.mark.parametrize(
    "moment",
    [
        *("import", "start", "stopping"),
        *(pytest.param(moment, marks=pytest.mark.long) for moment in ("sleep", "wake", "burying")),
    ],
)
def test_all_is_gone_soon_and_who_waits_is_told_or_served(
    make: Callable[[str], Engine], tmp_path: Path, moment: str, end: Callable[[Engine], None]
) -> None:
    engine = make(moment)
    reach(engine, moment)
    with calls(engine) as waiting:
        wait_until(lambda: reached(engine, moment, tmp_path / "once"), 10, moment)
        everything = all_processes(engine)
        assert len(everything) >= 2
        began = time.monotonic()
        end(engine)
        wait_until(lambda: not any_exists(everything), SETTLE_S, "all to be gone")
        assert time.monotonic() - began < 10
    error = waiting[0].exception()
    assert error is None or isinstance(error, (EngineStoppedError, EngineDiedError)), error
    if end is terminate and moment in ("import", "start", "wake"):
        assert error is None, "nobody here wanted it to end: another supervisor was started"
    elif moment in ("import", "start", "wake"):
        assert error is not None, "it was stopped while this caller waited for it"
    assert hello(engine) == ANSWER
    assert not complaints(engine)


def test_a_forced_shutdown_while_it_is_evicted_does_not_let_it_start_again(slow_to_end: MakeEngine) -> None:
    engine = slow_to_end()
    engine.warmup()
    group = server_group(engine)
    pid = supervisor_pid(engine)
    evicting = Asking(engine, Evict())
    wait_for(engine, EngineState.STOPPING)
    waiting = ensure_ready(engine)  # will begin a start as soon as it can
    began = time.monotonic()
    ending = Asking(engine, Shutdown(force=True))
    assert ending.answer() in (Gone(), None)
    assert time.monotonic() - began < 8
    assert evicting.answer() == Gone()
    answer = waiting.answer()
    assert answer is None or (isinstance(answer, StartFailed) and answer.failure.kind is FailureKind.STOPPED)
    wait_until(lambda: not any_exists([pid, *group]), 5, "all to be gone")


def test_a_forced_shutdown_is_final_for_a_request_in_flight(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 2, "ignore_sigterm": True})  # the supervisor ends with the last process
    engine.warmup()
    with calls(engine) as waiting:
        wait_until(lambda: engine.status().leases, 10, "the request to be under way")
        force(engine)
    assert isinstance(waiting[0].exception(), EngineStoppedError), waiting[0]
    assert engine.status().state is EngineState.STOPPED
    assert log_of(engine).count("stopped -> starting") == 1


def test_sigterm_twice_is_as_once(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    engine.warmup()
    everything = all_processes(engine)
    terminate(engine)
    os.kill(everything[0], signal.SIGTERM)
    wait_until(lambda: not any_exists(everything), 10, "all to be gone")
    assert not complaints(engine)
    assert hello(engine) == ANSWER


# ---- twice at once


@pytest.mark.smoke
@pytest.mark.parametrize("request_", [Evict(), MakeRoom(), Shutdown()])
def test_what_two_ask_at_once_is_done_once_and_told_to_both(fake_engine: MakeEngine, request_: Request) -> None:
    engine = fake_engine()
    engine.warmup()
    group = server_group(engine)
    asking = [Asking(engine, request_) for _ in range(3)]
    assert [each.answer() for each in asking] == [Gone()] * 3
    assert not any_exists(group)
    assert log_of(engine).count("ready -> stopping") == 1
    assert not complaints(engine)


@pytest.mark.parametrize("first", ["evict", "ensure_ready"])
def test_requests_and_evictions_that_come_together_break_nothing(fake_engine: MakeEngine, first: str) -> None:
    engine = fake_engine()
    engine.warmup()
    pid = supervisor_pid(engine)
    for _ in range(15):
        if first == "evict":
            evicting, asking = Asking(engine, Evict()), ensure_ready(engine)
        else:
            asking, evicting = ensure_ready(engine), Asking(engine, Evict())
        answer = asking.answer()
        assert isinstance(answer, Ready)
        assert evicting.answer() in (Gone(), Refused(Refusal.BUSY))
    assert supervisor_pid(engine) == pid
    assert not complaints(engine)
    assert hello(engine) == ANSWER


def test_a_shutdown_and_requests_at_once_end_in_one_or_the_other(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 0.05})
    for _ in range(5):
        engine.warmup()
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(hello, engine) for _ in range(3)]
            pool.submit(force, engine).result(timeout=SETTLE_S)
        errors = [answer.exception() for answer in answers]
        assert all(error is None or isinstance(error, EngineStoppedError) for error in errors), errors
    assert not complaints(engine)


def test_callers_that_hang_up_change_nothing(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 0.3})
    moments = random.Random(0)
    directory_of(engine).prepare()
    engine.warmup()
    pid = supervisor_pid(engine)
    for _ in range(10):
        for asking in (Asking(engine, Evict()), ensure_ready(engine), Asking(engine, MakeRoom())):
            time.sleep(moments.uniform(0, 0.05))  # the moment is what is tested
            asking.hang_up()
    assert hello(engine) == ANSWER
    assert supervisor_pid(engine) == pid
    assert not complaints(engine)


def test_an_evict_that_nobody_waits_for_calls_off_a_start_nobody_waits_for(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 10})
    with calls(engine) as waiting:
        wait_until(lambda: engine.status().server_pid is not None, 10, "the server")
        group = server_group(engine)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(force, engine).result(timeout=SETTLE_S)
    assert isinstance(waiting[0].exception(), EngineStoppedError)
    assert not any_exists(group)


def test_an_unknown_word_is_refused_and_the_supervisor_goes_on(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    engine.warmup()
    pid = supervisor_pid(engine)
    for line in (b'{"type": "Dance"}\n', b'{"type": "Gone"}\n', b"hello\n"):
        assert Asking(engine, line).answer() == NotUnderstood()
    assert supervisor_pid(engine) == pid
    assert hello(engine) == ANSWER
