"""An engine's life on real vLLM: lazy, shared, evicted, brought back; faults leave nothing behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineBusyError, EngineDiedError, EngineState, EngineStoppedError, GenerationChunk
from shared_engine.request.io_loop import run_sync
from tests.real.conftest import MakeEngine
from tests.support.engines import settings_of
from tests.support.failure_matrix import process_named
from tests.support.processes import all_processes, any_exists, processes_of_group, run_app
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
ATTEMPTS = 5


async def first_chunk(stream: AsyncGenerator[GenerationChunk, None]) -> GenerationChunk:
    """Begin a stream and leave it open: an asynchronous one is read only as far as it is asked to."""
    return await anext(stream)


async def rest_of(stream: AsyncGenerator[GenerationChunk, None]) -> list[GenerationChunk]:
    return [chunk async for chunk in stream]


def state_of(engine: Engine) -> EngineState:
    return engine.status().state


def test_constructing_and_looking_start_nothing(tiny_chat: dict[str, Any], runtime_root: Path) -> None:
    before = set(runtime_root.iterdir())
    engine = Engine(**tiny_chat, seed=1)
    assert not engine.is_ready()
    assert engine.status().state is EngineState.STOPPED
    assert engine.metrics() == {}
    engine.evict()
    engine.shutdown()
    assert set(runtime_root.iterdir()) == before


def test_an_idle_engine_leaves_memory_and_the_next_request_brings_it_back(breakable: MakeEngine) -> None:
    engine = breakable(idle_ttl_s=1)
    # The first prompt of its life is one token long: with AMX the worker once died of that (launcher.py: allow_amx).
    assert engine.generate("Hello", max_tokens=1).usage.prompt_tokens == 1
    starts = engine.status().starts
    text = engine.chat(HELLO, max_tokens=8).text
    group = processes_of_group(engine.status().server_pid or 0)
    assert len(group) >= 3, "API server, EngineCore and worker"
    ended = time.monotonic()
    wait_until(lambda: state_of(engine) is EngineState.STANDBY, 30, "the eviction")
    assert time.monotonic() - ended >= 0.9, "the time to live is counted from the end of the last request"
    assert not any_exists(group)
    assert engine.chat(HELLO, max_tokens=8).text == text
    status = engine.status()
    assert (status.state, status.starts) == (EngineState.READY, starts + 1)

    # A request that takes longer than the time to live is not cut off.
    stream = engine.astream_chat(HELLO, **LONG)
    run_sync(first_chunk(stream))
    open_until = time.monotonic() + 2.5
    wait_until(lambda: time.monotonic() > open_until, 5, "the time to live to pass")
    assert state_of(engine) is EngineState.READY
    assert run_sync(rest_of(stream))[-1].usage is not None
    assert engine.status().starts == starts + 1


@pytest.mark.long
def test_a_death_in_the_middle_is_told_and_the_next_request_works(breakable: MakeEngine) -> None:
    engine = breakable()
    error = next(filter(None, (death_in_a_stream(engine) for _ in range(ATTEMPTS))), None)
    assert error is not None
    assert "died while the request was running" in error.message
    assert error.log_tail
    wait_until(lambda: state_of(engine) is EngineState.FAILED, 15, "its processes to be gone")
    starts = engine.status().starts
    assert engine.chat(HELLO, max_tokens=8).text
    assert engine.status().starts == starts + 1


def death_in_a_stream(engine: Engine) -> EngineDiedError | None:
    """Kill the server when a stream has begun; None if all of the answer had come by then.

    On two cores vLLM may hold back the first chunk until the last token is done (benchmarks/NOTES.md).
    """
    stream = engine.stream_chat(HELLO, **LONG)
    next(stream)
    os.kill(engine.status().server_pid or 0, signal.SIGKILL)
    try:
        list(stream)
    except EngineDiedError as exc:
        return exc
    return None


def test_ctrl_c_while_starting_ends_the_waiting_not_the_start(breakable: MakeEngine) -> None:
    engine = breakable()
    starts = engine.status().starts
    app = run_app("chat", settings_of(engine))
    wait_until(lambda: state_of(engine) is EngineState.STARTING, 30, "the start")
    app.send_signal(signal.SIGINT)
    _, err = app.communicate(timeout=10)
    assert app.returncode != 0
    assert "KeyboardInterrupt" in err
    wait_until(lambda: state_of(engine) is EngineState.READY, 120, "the start to end well")
    assert engine.chat(HELLO, max_tokens=8).text
    assert engine.status().starts == starts + 1


def test_a_busy_engine_is_not_evicted(breakable: MakeEngine) -> None:
    engine = breakable()
    stream = engine.astream_chat(HELLO, **LONG)
    run_sync(first_chunk(stream))
    with pytest.raises(EngineBusyError, match=r"0\.2 s"):
        engine.evict(timeout=0.2)
    run_sync(stream.aclose())
    engine.evict()
    assert state_of(engine) is EngineState.STANDBY
    assert engine.chat(HELLO, max_tokens=8).text


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_uses_the_same_engine(tiny_chat: dict[str, Any]) -> None:
    engine = Engine(**tiny_chat)
    text = engine.chat(HELLO, max_tokens=8).text
    child = os.fork()
    if child == 0:
        os._exit(0 if engine.chat(HELLO, max_tokens=8).text == text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.chat(HELLO, max_tokens=8).text == text


# ---- those that end its launcher too come last: each start after them takes 10 s


def test_a_killed_app_leaves_nothing_after_the_time_to_live(breakable: MakeEngine) -> None:
    engine = breakable(idle_ttl_s=1, standby=False)
    app = run_app("stream_forever", settings_of(engine))
    assert app.stdout is not None
    assert app.stderr is not None
    with app.stdout, app.stderr:
        assert app.stdout.readline() == "chunk\n"
        everything = all_processes(engine)
        assert len(everything) >= 5
        app.send_signal(signal.SIGKILL)
        app.wait()
    wait_until(lambda: not any_exists(everything), 30, "all processes to leave")
    assert state_of(engine) is EngineState.STOPPED


def test_a_start_nobody_waits_for_can_be_called_off(breakable: MakeEngine) -> None:
    engine = breakable()
    app = run_app("chat", settings_of(engine))
    wait_until(lambda: state_of(engine) is EngineState.STARTING, 30, "the start")
    with pytest.raises(EngineBusyError):
        engine.evict(timeout=0.1)
    app.kill()
    app.communicate()
    everything = all_processes(engine)
    engine.shutdown()
    assert not any_exists(everything)
    assert state_of(engine) is EngineState.STOPPED


@pytest.mark.long
def test_a_forced_shutdown_is_final_for_requests_in_flight(breakable: MakeEngine) -> None:
    engine = breakable()
    with ThreadPoolExecutor(1) as pool:
        engine.warmup()
        os.kill(process_named(engine, "Worker"), signal.SIGSTOP)  # the request is in flight for certain
        answer = pool.submit(engine.chat, HELLO, **LONG)
        wait_until(lambda: engine.status().leases, 30, "the request to be under way")
        everything = all_processes(engine)
        engine.shutdown(force=True)
        with pytest.raises(EngineStoppedError):
            answer.result(timeout=60)
    assert not any_exists(everything)
    assert state_of(engine) is EngineState.STOPPED, "the request in flight has not started it again"
