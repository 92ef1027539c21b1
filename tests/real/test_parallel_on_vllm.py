"""One engine in several processes that compute: data and tensor parallel, several API servers. All end together."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineDiedError, EngineState
from shared_engine.machine.processor import is_slow_in_bfloat16
from shared_engine.observe.processes import ProcessNode
from shared_engine.request.io_loop import run_sync
from tests.real.conftest import MakeEngine
from tests.support.engines import ended_engines
from tests.support.failure_matrix import process_named, shared_memory_of
from tests.support.in_flight import HELLO, SHORT, SHORT_ANSWER, wait_quiet
from tests.support.processes import all_processes, any_exists, processes_of_group, wait_gone
from tests.support.questions import WEATHER
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.long]
LONG: dict[str, Any] = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
NOTICED_S = 10.0


@pytest.fixture(scope="module")
def copies(tiny_chat: dict[str, Any]) -> Iterator[MakeEngine]:
    """Makes an engine with two copies of the model: the same for all tests, kept as each wishes."""
    with ended_engines() as made:

        def make(**wishes: Any) -> Engine:
            made.append(Engine(**{**tiny_chat, "data_parallel_size": 2, **wishes}))
            return made[-1]

        yield make


def by_core(engine: Engine, name: str) -> dict[str, float]:
    """One of vLLM's numbers, of each EngineCore."""
    pattern = rf'^vllm:{name}{{engine="(\d)".*}} (\S+)$'
    found = re.findall(pattern, run_sync(engine._requests.metrics()), re.MULTILINE)
    return {core: float(value) for core, value in found}


def processors_of(pid: int) -> set[str]:
    """Where the threads of a process may run."""
    found = re.findall(r"Cpus_allowed_list:\s*(\S+)", (Path("/proc") / str(pid) / "status").read_text())
    return set(found)


def names(node: ProcessNode) -> list[str]:
    return [each.name for each in node.walk()]


def test_two_copies_share_the_work_and_are_counted_as_one_engine(copies: MakeEngine) -> None:
    engine = copies()
    assert engine.chat(HELLO, **SHORT).text == SHORT_ANSWER
    assert "".join(chunk.text for chunk in engine.stream_chat(HELLO, **SHORT)) == SHORT_ANSWER
    answers = engine.chat_batch([HELLO] * 20, **SHORT)
    assert [answer.text for answer in answers] == [SHORT_ANSWER] * 20
    (call,) = engine.chat([{"role": "user", "content": "What is the weather in Oslo?"}], tools=[WEATHER]).tool_calls
    assert call.name == "get_weather"
    wait_quiet(engine)
    tokens = by_core(engine, "generation_tokens_total")
    assert len(tokens) == 2
    assert min(tokens.values()) > 0
    assert engine.metrics()["generation_tokens"] == engine.stats().counters["generation_tokens"] == sum(tokens.values())
    phases = engine.status().life.start_seconds
    assert phases["weights"] > 0


def test_each_copy_has_a_core_of_its_own_and_the_tree_shows_both(copies: MakeEngine) -> None:
    engine = copies()
    engine.warmup()
    tree = engine.status(processes=True).processes
    assert tree is not None
    assert {"EngineCore_DP0", "EngineCore_DP1", "DPCoordinator"} <= {*names(tree)}
    workers = [node.pid for node in tree.walk() if node.name == "Worker"]
    assert len(workers) == 2
    one, other = map(processors_of, workers)
    if len(os.sched_getaffinity(0)) > 1:
        assert not one & other


def test_an_eviction_ends_all_copies_and_the_next_request_forks_them(copies: MakeEngine) -> None:
    engine = copies()
    engine.warmup()
    group, files = processes_of_group(engine.status().server_pid or 0), shared_memory_of(engine)
    assert len(group) >= 6
    engine.evict()
    assert engine.status().state is EngineState.STANDBY
    assert not any_exists(group)
    assert not [file for file in files if os.path.exists(file)]
    returns = engine.status().life.returns
    assert engine.chat(HELLO, **SHORT).text == SHORT_ANSWER
    assert engine.status().life.returns == returns + 1


def test_the_death_of_one_copy_is_that_of_the_engine_and_told_at_once(copies: MakeEngine) -> None:
    engine = copies()
    engine.warmup()
    group = processes_of_group(engine.status().server_pid or 0)
    streams = [engine.stream_chat(HELLO, **LONG) for _ in range(2)]
    for stream in streams:
        next(stream)
    os.kill(process_named(engine, "EngineCore_DP1"), signal.SIGKILL)
    killed_at = time.monotonic()
    told = []
    for stream in streams:
        try:
            list(stream)
        except EngineDiedError as exc:
            told.append(str(exc))
    assert time.monotonic() - killed_at < NOTICED_S
    assert told, "both streams were over before"
    assert all("vLLM's EngineCore_DP1 was killed by SIGKILL (from outside)" in error for error in told)
    assert wait_gone(group, NOTICED_S) == 0
    assert engine.chat(HELLO, **SHORT).text == SHORT_ANSWER


def test_one_copy_that_stands_still_is_noticed_while_the_other_works(copies: MakeEngine) -> None:
    copies().evict()  # and with that the wishes of others end
    engine = copies(stall_timeout_s=2)
    engine.warmup()
    starts, stopped = engine.status().starts, threading.Event()

    def keep_busy() -> None:
        while not stopped.is_set():
            list(engine.stream_chat(HELLO, **LONG))

    with ThreadPoolExecutor(2) as pool:
        try:
            working = pool.submit(keep_busy)
            wait_until(lambda: 1.0 in by_core(engine, "num_requests_running").values(), 30, "one copy to work")
            (busy,) = (core for core, count in by_core(engine, "num_requests_running").items() if count)
            os.kill(process_named(engine, f"EngineCore_DP{1 - int(busy)}"), signal.SIGSTOP)
            unseen = pool.submit(engine.chat, HELLO, **SHORT)  # vLLM gives it to the copy that has nothing to do
            assert unseen.result(60).text == SHORT_ANSWER
        finally:
            stopped.set()
        with pytest.raises(EngineDiedError, match=r"it hung: .* stall_timeout_s = 2 s"):
            working.result(60)
    assert engine.status().starts == starts + 1


def test_a_killed_supervisor_leaves_no_copy(copies: MakeEngine) -> None:
    engine = copies()
    engine.warmup()
    everything = all_processes(engine)
    os.kill(process_named(engine, "supervisor"), signal.SIGKILL)
    assert wait_gone(everything, NOTICED_S) == 0


# ---- a model that is split over two workers, behind two API servers: one engine for both, as each costs an import


@pytest.fixture(scope="module")
def split(tiny_chat: dict[str, Any]) -> Iterator[Engine]:
    args = {**tiny_chat["engine_args"], "api_server_count": 2}
    with ended_engines() as made:
        made.append(Engine(**{**tiny_chat, "tensor_parallel_size": 2, "engine_args": args}))
        yield made[0]


def killed(engine: Engine, process: str) -> str:
    """What the engine says of the end of one of its processes; all others have ended by then, too."""
    group = processes_of_group(engine.status().server_pid or 0)
    os.kill(process_named(engine, process), signal.SIGKILL)
    wait_until(lambda: engine.status().state is EngineState.FAILED, NOTICED_S, "the death to be noticed")
    assert not any_exists(group)
    return engine.status().last_error or ""


@pytest.mark.long
def test_several_api_servers_are_one_engine(split: Engine) -> None:
    assert [answer.text for answer in split.chat_batch([HELLO] * 20, **SHORT)] == [SHORT_ANSWER] * 20
    wait_quiet(split)
    assert split.metrics()["request_success"] == 20, "of both together"
    assert "vLLM's APIServer_1 was killed by SIGKILL" in killed(split, "APIServer_1")


@pytest.mark.long
def test_a_model_that_is_split_answers_alike_and_leaves_no_shared_memory(split: Engine) -> None:
    assert split.chat(HELLO, **SHORT).text == SHORT_ANSWER
    files = shared_memory_of(split)
    assert files
    # Without AVX-512, vLLM's build has no shared memory for what the workers tell each other, only for their requests.
    assert is_slow_in_bfloat16() or any("-cpushm_" in file for file in files)
    assert "vLLM's Worker_TP1 was killed by SIGKILL" in killed(split, "Worker_TP1")
    assert not [file for file in files if os.path.exists(file)]
