"""Engines that stand still: told from those that only are slow, ended, and replaced."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineDiedError, EngineStartError, EngineStartTimeoutError, EngineState
from shared_engine.machine.locks import try_lock
from shared_engine.machine.proc import is_resource_tracker
from shared_engine.runtime.progress import StartPhase
from tests.fake.conftest import MakeEngine
from tests.support.callers import (
    ANSWER,
    HELLO,
    calls,
    complaints,
    directory_of,
    error_of,
    hello,
    log_of,
    server_group,
    server_pid,
    supervisor_pid,
    wait_for,
)
from tests.support.engines import settings_of
from tests.support.processes import all_processes, any_exists, end_of, processes_of_group, run_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)

# ---- while requests run


@pytest.mark.parametrize("spin", [True, False], ids=["spinning", "silent"])
def test_a_stream_that_hangs_is_told_so_and_the_next_request_works(
    fake_engine: MakeEngine, tmp_path: Path, spin: bool
) -> None:
    faults = {"hang_mid_generation": True, "spin": spin, "once": str(tmp_path / "once")}
    engine = fake_engine(faults, stall_timeout_s=1)
    stream = engine.stream_chat(HELLO)
    assert next(stream).text == "Hello"
    pid = server_pid(engine)
    began = time.monotonic()
    with pytest.raises(EngineDiedError, match=r"it hung: .* nothing moved for stall_timeout_s = 1 s"):
        list(stream)
    assert 0.5 < time.monotonic() - began < 6
    wait_until(lambda: not processes_of_group(pid), 5, "its processes to be gone")
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2


@pytest.mark.smoke
def test_a_hang_before_any_byte_is_tried_again_unseen(fake_engine: MakeEngine, tmp_path: Path) -> None:
    engine = fake_engine({"hang_mid_generation": True, "once": str(tmp_path / "once")}, stall_timeout_s=1)
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2


def test_a_server_that_answers_nothing_any_more_is_replaced(
    fake_engine: MakeEngine, tmp_path: Path, fake_cuda_python: str
) -> None:
    faults = {"hang_at": "request", "ignore_sigterm": True, "once": str(tmp_path / "once")}
    engine = fake_engine(faults, stall_timeout_s=1, python=fake_cuda_python)
    engine.warmup()
    group = server_group(engine)
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2
    assert not any_exists(group)


def test_a_request_that_hangs_every_engine_is_tried_twice(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True}, stall_timeout_s=0.5, max_retries=5)
    error = error_of(engine)
    assert isinstance(error, EngineDiedError)
    assert "it hung" in error.message
    assert engine.status().starts == 2


async def test_who_reads_slowly_does_not_hang_the_engine(fake_engine: MakeEngine) -> None:
    engine = fake_engine(stall_timeout_s=2)  # within which even a busy machine lets the fake answer a prompt
    texts = []
    async for chunk in engine.astream_chat(HELLO):
        texts.append(chunk.text)
        if len(texts) == 1:
            async with asyncio.timeout(20):  # till the supervisor has asked twice, with a prompt of its own
                while (await engine.ametrics())["generation_tokens"] < 9 + 2:
                    await asyncio.sleep(0.02)
    assert "".join(texts) == ANSWER
    assert engine.status().starts == 1
    assert "->" not in log_of(engine).partition("-> ready")[2]


def test_a_long_generation_that_moves_is_left_alone(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.3}, stall_timeout_s=1)
    began = time.monotonic()
    assert hello(engine) == ANSWER
    assert time.monotonic() - began > 2.5
    assert engine.status().starts == 1


def test_a_hang_while_it_falls_asleep_does_not_keep_it_from_being_ended(
    fake_engine: MakeEngine, fake_cuda_python: str
) -> None:
    engine = fake_engine({"slow_sleep_s": 60}, python=fake_cuda_python, sleep_after_s=0.1)
    engine.warmup()
    group = server_group(engine)
    began = time.monotonic()
    engine.evict()
    assert time.monotonic() - began < 5
    assert not any_exists(group)


# ---- while it starts


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("import", "importing vLLM"),
        ("start", "reading the model's config"),
        ("weights", "loading weights"),
        ("ready", "starting the HTTP server"),
    ],
)
def test_a_start_that_stands_still_is_ended_long_before_its_time_and_names_the_phase(
    fake_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, words: str
) -> None:
    fault = {"hang_at": phase, "once": str(tmp_path / "once")}
    monkeypatch.setenv("FAKE_VLLM_IMPORT", json.dumps(fault if phase == "import" else {}))
    engine = fake_engine({} if phase == "import" else fault, start_timeout_s=60, stall_timeout_s=1)
    began = time.monotonic()
    error = error_of(engine)
    assert 1 < time.monotonic() - began < 8
    assert isinstance(error, EngineStartTimeoutError)
    assert "the start hangs" in error.message
    assert "stall_timeout_s = 1 s" in error.message
    assert words in error.message
    assert "in _hang" in str(error), "the stack of the process that hangs"
    assert engine.status().server_pid is None
    assert hello(engine) == ANSWER


@pytest.mark.parametrize("life", [{"spin": True}, {"chatter_s": 0.2}], ids=["spin", "chatter"])
def test_a_start_that_works_or_talks_is_no_stall(fake_engine: MakeEngine, life: dict[str, Any]) -> None:
    engine = fake_engine({"hang_at": "weights", **life}, start_timeout_s=2.5, stall_timeout_s=0.7)
    error = error_of(engine)
    assert isinstance(error, EngineStartTimeoutError)
    assert "start_timeout_s = 2.5 s: it was loading weights" in error.message


def test_a_supervisor_that_was_stopped_is_replaced_unseen(fake_engine: MakeEngine) -> None:
    engine = fake_engine(stall_timeout_s=2)
    assert hello(engine) == ANSWER
    engine.evict()
    everything = all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGSTOP)
    apps = [run_app("chat", settings_of(engine)) for _ in range(3)]  # one of them ends it, unseen by the others
    assert hello(engine) == ANSWER
    assert not any_exists(everything)
    assert [end_of(app, 30)[0] for app in apps] == [0, 0, 0]


@pytest.mark.long
def test_an_engine_whose_resource_tracker_was_stopped_goes_on(fake_engine: MakeEngine, fake_cuda_python: str) -> None:
    engine = fake_engine({"spawn_core": True, "token_delay_s": 1}, python=fake_cuda_python, stall_timeout_s=1)
    engine.warmup()
    (tracker,) = (pid for pid in server_group(engine) if is_resource_tracker(pid))
    os.kill(tracker, signal.SIGSTOP)
    assert "".join(chunk.text for chunk in engine.stream_chat(HELLO)) == ANSWER
    assert engine.status().starts == 1


@pytest.mark.parametrize("number", [pytest.param(signal.SIGSTOP, marks=pytest.mark.long), signal.SIGKILL])
def test_a_server_whose_supervisor_was_stopped_too_is_replaced_unseen(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("shared_engine.request.supervisor_client.OUTCOME_TIMEOUT_S", 1.0)
    engine = fake_engine(timeout=2, max_retries=5)
    assert hello(engine) == ANSWER
    everything = all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGSTOP)
    os.kill(server_pid(engine), number)
    assert hello(engine) == ANSWER
    wait_until(lambda: not any_exists(everything), 5, "all of it to end")


def test_a_forced_shutdown_ends_a_supervisor_that_was_stopped(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    assert hello(engine) == ANSWER
    everything = all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGSTOP)
    engine.shutdown(force=True)
    wait_until(lambda: not any_exists(everything), 5, "all of it to end")


def test_a_supervisor_that_hangs_and_was_not_stopped_is_named(fake_engine: MakeEngine) -> None:
    """This process takes its place, and says nothing."""
    engine = fake_engine(stall_timeout_s=1)
    directory = directory_of(engine)
    directory.prepare()
    with open(directory.lock, "w") as lock, socket.socket(socket.AF_UNIX) as listening:
        assert try_lock(lock.fileno(), fcntl.LOCK_EX)
        listening.bind(str(directory.control_socket))
        listening.listen()
        error = error_of(engine)
    assert isinstance(error, EngineStartTimeoutError)
    assert "has not replied for stall_timeout_s = 1 s: `kill -KILL " in error.message
    assert hello(engine) == ANSWER


def test_callers_wait_for_the_end_of_a_supervisor_that_was_sent_sigterm(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    assert hello(engine) == ANSWER
    first = supervisor_pid(engine)
    os.kill(all_processes(engine)[1], signal.SIGSTOP)  # it does not collect the server, nor exit when it is asked to
    with calls(*[engine] * 5) as waiting:
        os.kill(first, signal.SIGTERM)
    assert {call.result() for call in waiting} == {ANSWER}
    assert hello(engine) == ANSWER
    assert supervisor_pid(engine) != first


def test_what_is_left_of_an_engine_whose_supervisor_was_killed_is_ended(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"spawn_core": True})
    assert hello(engine) == ANSWER
    helper = subprocess.Popen(["sleep", "600"], env={"TMPDIR": str(directory_of(engine).scratch)})
    other = subprocess.Popen(["sleep", "600"])
    helper.send_signal(signal.SIGSTOP)
    everything = all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGKILL)
    wait_until(lambda: not any_exists(everything), 10, "the engine to end")
    assert hello(engine) == ANSWER
    assert helper.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_launcher_that_stands_still_is_replaced_unseen(fake_engine: MakeEngine) -> None:
    engine = fake_engine(stall_timeout_s=20)
    assert hello(engine) == ANSWER
    engine.evict()
    launcher = all_processes(engine)[1]
    os.kill(launcher, signal.SIGSTOP)
    assert hello(engine) == ANSWER
    assert not any_exists([launcher])


@pytest.mark.long
def test_servers_that_somebody_stops_again_and_again_are_replaced_unseen(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.1}, stall_timeout_s=1)
    engine.warmup()
    with calls(engine) as waiting:
        stopped: set[int | None] = {None}
        while len(stopped) <= 3:
            wait_until(lambda: engine.is_ready() and engine.status().server_pid not in stopped, 20, "a start")
            wait_until(lambda: engine.metrics().get("num_requests_running") == 1, 10, "the request")
            stopped.add(server_pid(engine))
            os.kill(server_pid(engine), signal.SIGSTOP)
    assert waiting[0].result() == ANSWER


# ---- deadlines


@pytest.mark.long
def test_a_caller_with_less_patience_is_told_and_the_start_goes_on_for_the_other(fake_engine: MakeEngine) -> None:
    patient = fake_engine({"start_delay_s": 8, "weights": 20})
    hasty = Engine(patient.settings.model_copy(update={"start_timeout_s": 1}))
    with calls(patient) as waiting:
        wait_for(patient, EngineState.STARTING)
        began = time.monotonic()
        error = error_of(hasty)
        assert time.monotonic() - began >= 1
        assert not waiting[0].done(), "it is told long before the start is over"
    assert isinstance(error, EngineStartTimeoutError)
    assert "start_timeout_s = 1 s: it was loading weights" in error.message
    assert error.message.endswith("the start goes on")
    assert waiting[0].result() == ANSWER
    assert patient.status().starts == 1


def test_a_caller_with_more_patience_extends_the_start(fake_engine: MakeEngine) -> None:
    hasty = fake_engine({"start_delay_s": 3, "weights": 20}, start_timeout_s=1.5)
    patient = Engine(hasty.settings.model_copy(update={"start_timeout_s": 20}))
    with calls(hasty) as waiting:
        wait_for(hasty, EngineState.STARTING)
        assert hello(patient) == ANSWER
    assert "the start goes on" in str(waiting[0].exception())
    assert patient.status().starts == 1


def test_the_progress_of_a_start_can_be_seen_and_ends_with_it(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 1.5, "weights": 5})
    seen: list[tuple[int, int]] = []

    def has_weights() -> bool:
        progress = engine.status().progress
        if progress is not None and progress.phase is StartPhase.WEIGHTS:
            seen.append((progress.done, progress.total))
        return len(set(seen)) >= 3

    with calls(engine) as waiting:
        wait_until(has_weights, 10, "three numbers of weights")
        assert engine.status().server_pid is not None
    assert waiting[0].result() == ANSWER
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {5}
    assert engine.status().progress is None


def test_a_request_that_comes_while_a_failed_start_is_cleared_away_is_served(
    slow_to_end: MakeEngine, tmp_path: Path
) -> None:
    engine = slow_to_end({"exit_at": "weights", "start_delay_s": 0.3, "once": str(tmp_path / "once")})
    with calls(engine) as first:
        wait_until(lambda: engine.status().server_pid is not None, 10, "the server")
        pid = server_pid(engine)
        wait_until(lambda: not any_exists([pid]), 10, "its end")
        assert engine.status().state is EngineState.STARTING
        began = time.monotonic()
        other = Engine(engine.settings.model_copy(update={"start_timeout_s": 19}))
        try:
            assert hello(other) == ANSWER
        except EngineStartError as exc:
            assert "exit code 0" in exc.message  # noqa: PT017
        assert time.monotonic() - began < 8
    assert isinstance(first[0].exception(), EngineStartError)
    assert not complaints(engine)


@pytest.mark.long
def test_a_launcher_that_hangs_as_it_forks_is_not_waited_for_as_a_start_is(
    fake_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_IMPORT", json.dumps({"hang_at": "fork", "once": str(tmp_path / "once")}))
    engine = fake_engine(start_timeout_s=120, max_retries=0)  # and the default stall_timeout_s, of minutes
    began = time.monotonic()
    words = r"the process that starts vLLM does not answer: .* for 20 s, while it was reading the model's config"
    with pytest.raises(EngineStartTimeoutError, match=words):
        hello(engine)
    assert 15 < time.monotonic() - began < 50
    assert hello(engine) == ANSWER, "by another launcher"
