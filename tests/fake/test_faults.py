"""What becomes of an engine that misbehaves as real vLLM can't be made to on demand."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from shared_engine import (
    Engine,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineState,
    RequestTimeoutError,
    ServerError,
    SettingsError,
)
from shared_engine.request.bodies import encode
from shared_engine.request.engine_socket import EngineSocket
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.runtime.engine_log import MAX_FILE_BYTES
from shared_engine.runtime.record import Record, write_record
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO, directory_of, error_of, server_group
from tests.support.engines import settings_of
from tests.support.processes import all_processes, any_exists, process_exists, run_app
from tests.support.waiting import wait_until

FLOOD_BYTES = 110_000_000


# ---- the fake itself


@pytest.mark.smoke
def test_the_fake_answers_as_vllm_does(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"weights": 4})
    whole = engine.chat(HELLO)
    assert (whole.text, whole.finish_reason, whole.usage.completion_tokens) == (ANSWER, "stop", 9)
    chunks = list(engine.stream_chat(HELLO, max_tokens=3))
    assert "".join(chunk.text for chunk in chunks) == "Hello! How"
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "length", None]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert engine.generate("Say it", max_tokens=2).text == "Hello!"
    assert engine.count_tokens("three little words") == 3
    assert engine.metrics()["generation_tokens"] == 9 + 3 + 2
    group = server_group(engine)
    assert len(group) == 2, "API server and EngineCore"
    log = Path(engine.status().log_file or "").read_text()
    assert "checkpoint shards:  50% Completed | 2/4" in log
    engine.evict()
    assert not any_exists(group)


def test_the_fake_sleeps_as_vllm_does(
    fake_engine: MakeEngine, fake_cuda_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    device = tmp_path / "device"
    engine = fake_engine({"memory": str(device)}, python=fake_cuda_python, engine_args={"enable_sleep_mode": True})
    with device.open("w") as neighbour:
        fcntl.flock(neighbour, fcntl.LOCK_EX)
        assert "less than desired GPU memory" in str(error_of(engine))
        fcntl.flock(neighbour, fcntl.LOCK_UN)
        engine.warmup()
        with pytest.raises(BlockingIOError):
            fcntl.flock(neighbour, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asyncio.run(sleep_and_wake(str(engine.status().socket), neighbour))
    assert engine.chat(HELLO).text == ANSWER


async def sleep_and_wake(socket_path: str, neighbour: TextIOWrapper) -> None:
    client = EngineSocket(socket_path)
    body = encode({"messages": HELLO})
    try:
        assert json.loads(await client.request("POST", "/sleep?level=1"))["status"] == "sleeping"
        assert json.loads(await client.request("GET", "/is_sleeping")) == {"is_sleeping": True}
        with pytest.raises(RequestTimeoutError):
            await client.request("POST", "/v1/chat/completions", body, timeout=0.2)
        fcntl.flock(neighbour, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ServerError, match="out of memory"):
            await client.request("POST", "/wake_up")
        fcntl.flock(neighbour, fcntl.LOCK_UN)
        assert json.loads(await client.request("POST", "/wake_up"))["status"] == "awake"
        assert json.loads(await client.request("GET", "/is_sleeping")) == {"is_sleeping": False}
    finally:
        await client.close()


def test_a_generation_of_the_fake_can_hang_while_its_health_is_good(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True, "hang_after_tokens": 2})
    stream = engine.stream_chat(HELLO)
    assert next(stream).text + next(stream).text == "Hello!"
    engine.warmup()
    assert engine.metrics()["num_requests_running"] == 1
    stream.close()
    wait_until(lambda: engine.metrics()["num_requests_running"] == 0, 5, "the abort")


async def test_a_closed_stream_ends_its_request_and_gives_its_lease_back(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True, "hang_after_tokens": 2})
    stream = engine.astream_chat(HELLO)
    gc.disable()
    try:
        assert (await anext(stream)).text == "Hello"
        with pytest.raises(EngineBusyError):
            await engine.aevict(timeout=0.2)
        await stream.aclose()
        await engine.aevict(timeout=0.2)
    finally:
        gc.enable()


# ---- exits


@pytest.mark.smoke
def test_exit_0_at_start_is_a_failure_told_to_all_who_wait_and_the_next_request_works(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = fake_engine({"exit_at": "weights", "start_delay_s": 0.5, "once": str(tmp_path / "once")})
    with ThreadPoolExecutor(5) as pool:
        errors = list(pool.map(lambda _: error_of(engine), range(5)))
    assert {type(error) for error in errors} == {EngineStartError}
    assert all("exit code 0" in error.message for error in errors)
    assert any("Starting to load model" in line for line in errors[0].log_tail)
    status = engine.status()
    assert (status.state, status.starts, status.server_pid) == (EngineState.FAILED, 1, None)
    assert engine.chat(HELLO).text == ANSWER
    assert engine.status().starts == 2


@pytest.mark.smoke
def test_what_the_machine_refuses_a_start_is_told_and_its_supervisor_goes_on(
    fake_engine: MakeEngine, runtime_root: Path
) -> None:
    engine = fake_engine()
    lock = runtime_root / "cpu.start"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    try:
        error = error_of(engine)
        pid = engine.status().supervisor_pid
    finally:
        lock.rmdir()
    assert type(error) is EngineStartError
    assert "Is a directory" in error.message
    assert str(lock) in error.message
    assert engine.chat(HELLO).text == ANSWER
    assert engine.status().supervisor_pid == pid


def test_exit_0_before_any_byte_is_tried_again_unseen(fake_engine: MakeEngine, tmp_path: Path) -> None:
    engine = fake_engine({"exit_at": "request", "exit_after_tokens": 2, "once": str(tmp_path / "once")})
    assert engine.chat(HELLO).text == ANSWER
    assert engine.status().starts == 2


@pytest.mark.smoke
def test_exit_0_in_a_stream_is_told_and_the_next_request_works(fake_engine: MakeEngine, tmp_path: Path) -> None:
    engine = fake_engine({"exit_at": "request", "exit_after_tokens": 2, "once": str(tmp_path / "once")})
    engine.warmup()
    group = server_group(engine)
    stream = engine.stream_chat(HELLO)
    assert next(stream).text + next(stream).text == "Hello!"
    with pytest.raises(EngineDiedError, match="exit code 0"):
        list(stream)
    assert engine.chat(HELLO).text == ANSWER
    assert not any_exists(group)  # told at once, and gone before the next one starts


def test_a_request_that_kills_every_engine_kills_two(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"exit_at": "request"}, max_retries=10)
    assert isinstance(error_of(engine), EngineDiedError)
    assert engine.status().starts == 2


def test_an_engine_that_ends_while_idle_is_gone_whole_and_comes_back(
    fake_engine: MakeEngine, fake_cuda_python: str, tmp_path: Path
) -> None:
    faults = {"exit_at": "idle", "once": str(tmp_path / "once")}
    engine = fake_engine(faults, python=fake_cuda_python)  # its EngineCore outlives the API server, as the real one
    engine.warmup()
    group = server_group(engine)
    os.kill(engine.status().server_pid or 0, signal.SIGUSR2)
    wait_until(lambda: engine.status().state is EngineState.FAILED, 5, "the supervisor to see it")
    assert not any_exists(group)
    assert engine.chat(HELLO).text == ANSWER


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_server_that_is_killed_is_told_with_the_signal(fake_engine: MakeEngine, number: signal.Signals) -> None:
    engine = fake_engine({"hang_mid_generation": True}, max_retries=0)
    stream = engine.stream_chat(HELLO)
    next(stream)
    os.kill(engine.status().server_pid or 0, number)
    with pytest.raises(EngineDiedError, match=f"vLLM was killed by {number.name}"):
        list(stream)


def test_a_start_without_a_usable_gpu_keeps_no_launcher(fake_engine: MakeEngine, fake_cuda_python: str) -> None:
    said = "RuntimeError: No CUDA GPUs are available"
    hopeless = fake_engine({"memory_error": said}, python=fake_cuda_python)
    assert "no usable GPU: No CUDA GPUs are available; `vllm-local install --cpu`" in str(error_of(hopeless))
    assert len(all_processes(hopeless)) == 1, "the supervisor"
    assert "no usable GPU" in str(error_of(hopeless)), "the next request tries again"
    other = fake_engine({"exit_at": "start"}, python=fake_cuda_python)
    assert isinstance(error_of(other), EngineStartError)
    assert len(all_processes(other)) == 2, "another start may go well: its launcher stays"


# ---- logs


@pytest.mark.parametrize("flood_line_bytes", [200, 5_000_000], ids=["lines", "one_line"])
@pytest.mark.parametrize("phase", ["start", "request"])
def test_a_log_flood_blocks_nothing_and_its_file_stays_bounded(
    fake_engine: MakeEngine, phase: str, flood_line_bytes: int
) -> None:
    flood = {"flood_bytes": FLOOD_BYTES, "flood_line_bytes": flood_line_bytes, "flood_at": phase}
    engine = fake_engine(flood)
    assert engine.chat(HELLO).text == ANSWER
    status = engine.status()
    assert (status.state, status.starts) == (EngineState.READY, 1)
    assert MAX_FILE_BYTES < log_bytes(engine) < 2 * MAX_FILE_BYTES + (1 << 18)
    engine.evict()
    assert engine.status().state is EngineState.STANDBY


def test_what_supervisors_before_have_written_counts_to_the_bound(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"flood_bytes": MAX_FILE_BYTES - 100_000})
    for _ in range(3):
        engine.warmup()
        engine.shutdown()
    assert log_bytes(engine) < 2 * MAX_FILE_BYTES + (1 << 18)


def log_bytes(engine: Engine) -> int:
    log = Path(engine.status().log_file or "")
    return sum(file.stat().st_size for file in log.parent.glob("engine.log*"))


# ---- overload


def test_a_storm_of_503_shorter_than_the_retries_is_not_seen(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"storm_503": 2}, max_retries=2)
    assert engine.chat(HELLO).text == ANSWER


def test_a_longer_storm_of_503_is_a_typed_error_and_passes(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"storm_503": 3}, max_retries=2)
    with pytest.raises(ServerError, match="overloaded") as caught:
        list(engine.stream_chat(HELLO))
    assert caught.value.status == 503
    assert engine.chat(HELLO).text == ANSWER
    assert engine.status().starts == 1


@pytest.mark.long
def test_of_a_local_engine_too_a_call_decides_how_often_it_is_tried_again(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"storm_503": 3}, max_retries=0)
    with pytest.raises(ServerError, match="overloaded"):
        engine.chat(HELLO, max_retries=1)
    assert engine.chat(HELLO, max_retries=1).text == ANSWER


def test_headers_of_a_call_do_no_harm_and_are_not_shown(
    fake_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """LlamaIndex's DocumentContextExtractor gives every LLM a header for Anthropic's servers."""
    caplog.set_level("DEBUG", "shared_engine")
    engine = fake_engine()
    headers = {"anthropic-beta": "hush-4711", "Authorization": "hush-4711"}
    assert engine.chat(HELLO, extra_headers=headers).text == ANSWER
    assert "".join(chunk.text for chunk in engine.stream_chat(HELLO, extra_headers=headers)) == ANSWER
    assert "a local engine gets no extra_headers: anthropic-beta, Authorization" in caplog.text
    assert "hush-4711" not in caplog.text


# ---- hangs


@pytest.mark.parametrize(
    "phase", ["import", *(pytest.param(phase, marks=pytest.mark.long) for phase in ("start", "ready"))]
)
def test_a_hang_at_start_is_told_in_time_and_leaves_no_process(
    fake_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    fault = {"hang_at": phase, "ignore_sigterm": True, "once": str(tmp_path / "once")}
    monkeypatch.setenv("FAKE_VLLM_IMPORT", json.dumps(fault if phase == "import" else {}))
    engine = fake_engine({} if phase == "import" else fault, start_timeout_s=1.5, stall_timeout_s=4)
    patient = Engine(engine.settings.model_copy(update={"start_timeout_s": 30}))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(error_of, engine)
        wait_until((tmp_path / "once").exists, 10, "the hang")
        began = time.monotonic()
        first = all_processes(engine)
        error = waiting.result(timeout=20)
    assert time.monotonic() - began < 4, "the caller is told when its time is over"
    assert isinstance(error, EngineStartTimeoutError)
    assert "start_timeout_s = 1.5 s" in error.message
    assert error.message.endswith("the start goes on"), "until it has stood still for stall_timeout_s"
    assert "the start hangs" in str(error_of(patient))
    assert engine.status().server_pid is None
    assert patient.chat(HELLO).text == ANSWER
    everything = [*first, *all_processes(engine)]
    engine.shutdown()
    assert not any_exists(everything)


def test_an_engine_that_ignores_sigterm_is_gone_after_evict_all_the_same(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = fake_engine({"ignore_sigterm": True, "once": str(tmp_path / "once")})
    engine.warmup()
    group = server_group(engine)
    assert len(group) == 2
    engine.evict()
    assert not any_exists(group)
    assert engine.chat(HELLO).text == ANSWER


# ---- many at once


def test_requests_that_race_evictions_are_all_answered(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=0.05)
    moments = random.Random(0)
    for round_ in range(25):
        # A caller with wishes of its own has the supervisor look again after idle_ttl_s.
        again = Engine(engine.settings.model_copy(update={"start_timeout_s": 30.0 + round_}))
        assert again.chat(HELLO).text == ANSWER
        time.sleep(moments.uniform(0.03, 0.09))
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: engine.chat(HELLO).text, range(3)))
        assert answers == [ANSWER] * 3
    assert engine.status().starts > 3, "there were evictions to race"


def test_twenty_processes_at_once_share_one_start(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 0.2})
    out, err = run_app("twenty_processes", settings_of(engine)).communicate(timeout=60)
    assert json.loads(out) == [0] * 20, err
    assert engine.status().starts == 1
    began = time.monotonic()
    engine.shutdown()
    assert time.monotonic() - began < 5, "no supervisor that lost the race takes the place of the one that leaves"


# ---- the runtime directory


@pytest.mark.smoke
def test_what_another_boot_left_is_ignored_and_its_pids_are_left_alone(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    directory = directory_of(engine)
    directory.path.mkdir(mode=0o700)
    for path in (directory.control_socket, directory.server_socket(7), directory.server_socket(8)):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
    directory.lock.write_text("")
    directory.lease.write_bytes(b"\xff" * 8)
    directory.spec.write_text("{")
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        pid = bystander.pid
        record = Record(
            EngineState.READY, "old", "0.1", 7, str(directory.server_socket(7)), pid, pid, pid, "another boot"
        )
        write_record(directory.record, record)
        assert engine.status().state is EngineState.STOPPED
        assert engine.metrics() == {}
        assert engine.chat(HELLO).text == ANSWER
        assert engine.status().socket == str(directory.server_socket(8))
        engine.shutdown()
        assert process_exists(pid)
        bystander.kill()


def test_a_record_that_was_cut_off_is_ignored(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    directory = directory_of(engine)
    directory.path.mkdir(mode=0o700)
    directory.record.write_text('{"state": "rea')
    assert engine.chat(HELLO).text == ANSWER
    assert engine.status().starts == 1


def too_long(folder: Path) -> str:
    return str(folder / ("x" * 100))


def below_a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file" / "root")


def not_to_be_made(_: Path) -> str:
    return "/proc/vllm-local"  # not even root may write there


@pytest.mark.parametrize("root", [too_long, below_a_file, not_to_be_made])
def test_an_unusable_runtime_directory_is_a_clear_error_before_any_start(
    fake_python: str,
    fake_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Callable[[Path], str],
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, root(tmp_path))
    settings: dict[str, Any] = {"model": fake_model, "python": fake_python, "start_timeout_s": 5}
    began = time.monotonic()
    with pytest.raises(SettingsError, match=ROOT_VARIABLE):
        Engine(**settings).chat(HELLO)
    assert time.monotonic() - began < 2
    assert not os.path.exists(too_long(tmp_path))
