"""Several engines of this machine behind one object: which run, who gets what, and what becomes of requests when one
of them dies, does not start, or leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import (
    Engine,
    EngineDiedError,
    EngineInfo,
    EngineNotInstalledError,
    EngineStartError,
    EngineState,
    EngineStoppedError,
    InvalidInputError,
    SettingsError,
)
from shared_engine.launch import replica_sets
from shared_engine.launch.replica_sets import settings_of_replicas
from shared_engine.pool import growth
from shared_engine.request import replicas
from shared_engine.request.local import LocalEndpoint
from tests.fake.conftest import MakeEngine
from tests.support.adapters import BRIEF, POLITE
from tests.support.callers import ANSWER, HELLO, journal, server_group, server_pid, supervisor_pid, wait_for
from tests.support.engines import settings_of
from tests.support.load import Load
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)
READY, STOPPED, STANDBY = EngineState.READY, EngineState.STOPPED, EngineState.STANDBY
TAKES = 2
SLOW: dict[str, Any] = {"token_delay_s": 0.03}  # of nine tokens
SMALL: dict[str, Any] = {"engine_args": {"max_num_seqs": TAKES}}
KILLS = 3 + 30 * int(os.environ.get("FAULT_ROUNDS", "0"))
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake binds nothing to them."""
    monkeypatch.setattr(replica_sets, "usable_cores", lambda: [(0,), (1,), (2,), (3,)])
    monkeypatch.setattr(growth, "CALM_S", 0.5)
    monkeypatch.setattr(replicas, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(replicas, "_known", {})


def alone(engine: Engine) -> list[Engine]:
    """Each replica as an object of its own."""
    return [Engine(settings) for settings in settings_of_replicas(engine.settings).values()]


def question() -> list[dict[str, str]]:
    """Another conversation each time: one and the same would stay with one replica."""
    return [{"role": "user", "content": f"Hello {next(_numbers)}"}]


def hello(engine: Engine) -> str:
    return engine.chat(question()).text


def states(engine: Engine) -> list[EngineState]:
    return [member.state for member in engine.status().members]


def shares(engine: Engine) -> list[int]:
    """How many requests each has answered."""
    return [member.requests.successes for member in engine.stats().members]


def ask(engine: Engine, count: int = 1, at_once: int = 1) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        assert list(pool.map(lambda _: hello(engine), range(count))) == [ANSWER] * count


def asked(call: Callable[[], str], at_once: int) -> Load:
    """Calls that are all to answer right."""

    def ask_once() -> None:
        assert call() == ANSWER

    return Load(ask_once, at_once)


# ---- which run


def test_the_first_does_alone_what_it_can_and_the_next_comes_when_it_is_full(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[bool] = []
    make_ready = LocalEndpoint.make_ready

    async def noted(endpoint: LocalEndpoint, *, is_awaited: bool) -> None:
        bars.append(is_awaited)
        await make_ready(endpoint, is_awaited=is_awaited)

    monkeypatch.setattr(LocalEndpoint, "make_ready", noted)
    engine = fake_engine({**SLOW, "start_delay_s": 0.6}, replicas=2, **SMALL)
    engine.warmup()
    ask(engine, 5)
    assert states(engine) == [READY, STOPPED]
    assert shares(engine) == [5, 0]
    with asked(lambda: hello(engine), 2 * TAKES) as load:
        wait_until(lambda: states(engine)[1] is EngineState.STARTING, 20, "the second to start")
        load.goes_on()  # nobody waits for the second one
        wait_until(lambda: states(engine) == [READY, READY], 20, "the second to be ready")
        wait_until(lambda: shares(engine)[1] > 10, 20, "answers of the second")
    assert load.errors == []
    assert engine.status().starts == 2
    assert bars == [True, False], "an app that waits for nothing is shown nothing"


@pytest.mark.long
def test_one_that_is_not_needed_any_more_falls_idle_and_comes_back_when_it_is(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, idle_ttl_s=1, **SMALL)
    with asked(lambda: hello(engine), 2 * TAKES) as load:
        wait_until(lambda: all(share > 3 for share in shares(engine)), 20, "answers of both")
    with asked(lambda: hello(engine), 1):  # which one does alone
        wait_until(lambda: states(engine) == [READY, STANDBY], 20, "the second to be evicted")
        before = shares(engine)
        wait_until(lambda: shares(engine)[0] > before[0] + 5, 20, "more answers")
    assert shares(engine)[1] == before[1]
    assert states(engine)[1] is STANDBY, "it was not started for that"
    with asked(lambda: hello(engine), 2 * TAKES):
        wait_until(lambda: shares(engine)[1] > before[1] + 3, 20, "answers of the second again")
    assert load.errors == []
    life = engine.stats().members[1].life
    assert life is not None
    assert (life.starts, life.returns, life.evictions) == (2, 1, {"idle": 1})


def test_both_leave_when_nobody_asks_and_the_first_comes_back_alone(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, idle_ttl_s=0.7, start="all", **SMALL)
    ask(engine)
    wait_until(lambda: states(engine) == [STANDBY, STANDBY], 20, "both to be evicted")
    lazy = Engine(**{**engine.settings.model_dump(exclude_unset=True), "start": "lazy"})
    ask(lazy, 3)
    assert states(lazy) == [READY, STANDBY]


def test_all_start_with_the_first_request_and_share_what_comes(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 0.2}, replicas=3, start="all")
    engine.warmup()
    assert states(engine) == [READY] * 3
    ask(engine, 60)
    assert all(shares(engine)), shares(engine)


@pytest.mark.long
def test_what_other_processes_ask_counts_by_the_engines_own_queue(fake_engine: MakeEngine) -> None:
    """This process has one request in flight at a time; others keep the first engine full."""
    engine = fake_engine({**SLOW, "queues_above": TAKES}, replicas=2)
    first = alone(engine)[0]
    with asked(lambda: hello(first), TAKES + 1), asked(lambda: hello(engine), 1) as load:
        wait_until(lambda: states(engine) == [READY, READY], 20, "the second to be started")
        wait_until(lambda: shares(engine)[1] > 3, 20, "answers of the second")
    assert load.errors == []


# ---- faults


def test_a_crash_loses_nothing_that_had_shown_nothing(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, start="all")
    # Of adapters the seed is the requests' own, and engine_args takes none: another key, and so other engines.
    settings = {**engine.settings.model_dump(exclude_unset=True, exclude={"seed"}), "max_model_len": 512}
    chain, index, own = ChatVLLM(**settings), VLLM(**settings), Engine(**settings)
    openai: Any = own.openai_client()

    def stream() -> str:
        while True:
            text = ""
            try:
                for chunk in own.stream_chat(question()):
                    text += chunk.text
                return text
            except EngineDiedError:
                if not text:
                    raise  # else it was told, which is all that can be done

    ways: Iterator[Callable[[], str]] = itertools.cycle([
        stream,
        lambda: hello(own),
        lambda: own.chat_batch([question(), question()])[1].text,
        lambda: str(chain.invoke(question()[0]["content"]).content),
        lambda: str(index.complete(question()[0]["content"])),
        lambda: asyncio.run(own.achat(question())).text,
        lambda: str(asyncio.run(chain.ainvoke(question()[0]["content"])).content),
        lambda: str(openai.chat.completions.create(model="default", messages=question()).choices[0].message.content),
    ])  # fmt: skip
    try:
        own.warmup()
        second = alone(own)[1]
        with asked(lambda: next(ways)(), 6) as load:  # noqa: PLW0108 - another way each time
            load.goes_on()
            for victim in (server_group(second)[-1], server_pid(second)):
                os.kill(victim, signal.SIGKILL)
                load.goes_on()
                wait_for(second, READY)
        assert load.errors == []
        assert states(own) == [READY, READY]
        assert own.stats().requests.retries > 0
    finally:
        own.shutdown(force=True)


@pytest.mark.long
def test_while_one_is_started_again_the_other_answers_at_once(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 1.6, **SLOW}, replicas=2, start="all")
    engine.warmup()
    first = alone(engine)[0]
    with asked(lambda: hello(engine), 4) as load:
        load.goes_on()
        os.kill(server_pid(first), signal.SIGKILL)
        wait_until(lambda: states(engine)[0] is EngineState.STARTING, 10, "the first to start again")
        load.goes_on()
        assert states(engine)[0] is EngineState.STARTING, "nobody waited for it"
        wait_until(lambda: states(engine)[0] is READY, 20, "the first to be back")
        before = shares(engine)[0]
        wait_until(lambda: shares(engine)[0] > before, 20, "answers of the first again")
    assert load.errors == []


def test_one_that_hangs_is_left_for_the_other(fake_engine: MakeEngine) -> None:
    faults = {"hang_mid_generation": True, "hang_after_tokens": 0, "on_devices": "2"}
    engine = fake_engine(faults, replicas=2, start="all", timeout=0.5)
    engine.warmup()
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda _: "".join(chunk.text for chunk in engine.stream_chat(question())), range(16))
        assert set(texts) == {ANSWER}
    assert shares(engine) == [16, 0]
    assert engine.stats().requests.errors == {}


def test_a_supervisor_that_is_killed_takes_no_request_with_it(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, start="all")
    engine.warmup()
    with asked(lambda: hello(engine), 4) as load:
        load.goes_on()
        os.kill(supervisor_pid(alone(engine)[0]), signal.SIGKILL)
        load.goes_on()
        wait_until(lambda: states(engine) == [READY, READY], 20, "the first to be back")
    assert load.errors == []


def test_one_that_somebody_stops_hands_its_requests_to_the_other(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, start="all")
    engine.warmup()
    with asked(lambda: hello(engine), 4) as load:
        load.goes_on()
        alone(engine)[0].shutdown(force=True)
        load.goes_on()
    assert load.errors == []


@pytest.mark.parametrize("start", ["lazy", pytest.param("all", marks=pytest.mark.long)])
def test_any_process_may_be_killed_at_any_moment(fake_engine: MakeEngine, start: str) -> None:
    """More of them with FAULT_ROUNDS set (``make test-faults``)."""
    chance = random.Random(start)
    engine = fake_engine({**SLOW, "start_delay_s": 0.2}, replicas=3, start=start, max_retries=3, **SMALL)
    engine.warmup()
    with asked(lambda: hello(engine), 6) as load:
        load.goes_on()
        for _ in range(KILLS):
            trees = [tree for member in engine.status(processes=True).members if (tree := member.processes) is not None]
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice([node.pid for tree in trees for node in tree.walk()]), signal.SIGKILL)
            load.goes_on()
    assert load.errors == []
    assert engine.status().in_flight == 0


def test_when_all_are_stopped_their_requests_start_none_of_them_again(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 1}, replicas=2, start="all")
    engine.warmup()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(hello, engine) for _ in range(4)]
        wait_until(lambda: engine.metrics().get("num_requests_running") == 4, 10, "requests to run")
        engine.shutdown(force=True)
        assert {type(each.exception()) for each in asked} == {EngineStoppedError}
    assert states(engine) == [STOPPED, STOPPED]


def test_a_request_that_kills_engines_kills_two_at_most(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"exit_at": "request", "exit_code": 3}, replicas=3, start="all", max_retries=5)
    engine.warmup()
    with pytest.raises(Exception, match="ended"):
        hello(engine)
    deaths = [member.life.failures.get("died", 0) for member in engine.status().members]
    assert sum(deaths) == 2


@pytest.mark.long
def test_one_that_has_no_memory_is_left_out_and_comes_back(fake_engine: MakeEngine, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    engine = fake_engine({"needs_gone": str(taken), "on_devices": "0"}, replicas=2, **SMALL)
    ask(engine, 3)
    assert shares(engine) == [0, 3]
    failed, other = engine.status().members
    assert failed.state is EngineState.FAILED
    assert "memory" in (failed.last_error or "")
    assert other.state is READY
    taken.unlink()
    ask(engine, 3)
    assert states(engine)[0] is EngineState.FAILED, "one does"


@pytest.mark.long
def test_a_start_that_fails_while_another_runs_fails_no_request(
    fake_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {"exit_at": "start", "exit_code": 3, "on_devices": "2", **SLOW}
    engine = fake_engine(faults, replicas=2, start="all", **SMALL)
    ask(engine, 40, at_once=8)
    assert "replica cpu:2 did not start, and the others go on" in caplog.text
    assert shares(engine) == [40, 0]
    life = engine.status().members[1].life
    assert sum(life.failures.values()) < 4, "it is not tried again for each request"
    with pytest.raises(EngineStartError):
        engine.warmup()


def test_what_is_wrong_for_all_is_told_after_one_start(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"exit_at": "start", "exit_code": 3}, replicas=3)
    with pytest.raises(EngineStartError) as raised:
        hello(engine)
    assert "also tried" not in str(raised.value)
    assert [sum(member.life.failures.values()) for member in engine.status().members] == [1, 0, 0]
    with pytest.raises(EngineStartError):
        asyncio.run(engine.achat(HELLO))
    assert [sum(member.life.failures.values()) for member in engine.status().members] == [1, 1, 0]


@pytest.mark.long
def test_what_no_device_has_memory_for_is_told_with_what_each_said(fake_engine: MakeEngine, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    engine = fake_engine({"needs_gone": str(taken)}, replicas=2)
    with pytest.raises(EngineStartError, match=r"memory(.|\n)*\(also tried: cpu:\d: .*memory"):
        hello(engine)
    taken.unlink()
    ask(engine)


def test_a_python_without_vllm_is_told_by_the_first_request(fake_model: str) -> None:
    with pytest.raises(EngineNotInstalledError, match="does not exist"):
        hello(Engine(model=fake_model, replicas=2, python="/nonexistent/python"))


def test_a_full_queue_sends_the_request_to_the_next_one(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"storm_503": 1, "on_devices": "0"}, replicas=2)
    ask(engine, 4)
    wait_until(lambda: states(engine) == [READY, READY], 20, "the next one to be ready")


# ---- sharing


@pytest.mark.long
def test_other_objects_and_processes_share_each_of_them(fake_engine: MakeEngine, tmp_path: Path) -> None:
    engine = fake_engine(replicas=2, start="all")
    engine.warmup()
    one = alone(engine)[1]
    before = one.status().starts
    assert hello(one) == ANSWER
    assert one.status().starts == before == 1
    script = (
        "import json, sys\n"
        "from shared_engine import Engine\n"
        "from shared_engine.launch import replica_sets\n"
        "replica_sets.usable_cores = lambda: [(0,), (1,), (2,), (3,)]\n"
        "engine = Engine(**json.loads(sys.argv[1]))\n"
        "engine.warmup()\n"
        "texts = [engine.chat([{'role': 'user', 'content': f'{number}'}]).text for number in range(9)]\n"
        "print(texts.count(sys.argv[2]))\n"
        "print([member.requests.successes > 0 for member in engine.stats().members])\n"
        "print(engine.status().starts)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, settings_of(engine), ANSWER],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:3] == ["9", "[True, True]", "2"]


def test_objects_count_together_over_threads_loops_and_forks(fake_engine: MakeEngine) -> None:
    engine = fake_engine(SLOW, replicas=2, start="all")
    same = Engine(engine.settings)
    streams = [engine.stream_chat(HELLO), same.stream_chat(HELLO)]
    for stream in streams:
        next(stream)
    assert same.status().in_flight == 2
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if engine.status().in_flight == 0 and hello(engine) == ANSWER else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for stream in streams:
        stream.close()

    async def several() -> set[str]:
        return {result.text for result in await asyncio.gather(*(engine.achat(question()) for _ in range(8)))}

    with ThreadPoolExecutor(4) as pool:
        assert {text for texts in pool.map(lambda _: asyncio.run(several()), range(4)) for text in texts} == {ANSWER}
    assert engine.status().in_flight == 0


def test_another_objects_wishes_reach_each_engine(fake_engine: MakeEngine) -> None:
    engine = fake_engine(replicas=2, start="all")
    engine.warmup()
    pinned = Engine(**{**engine.settings.model_dump(exclude_unset=True), "pinned": True})
    ask(pinned, 60)
    assert [member.pinned for member in engine.status().members] == [True, True]


# ---- adapters


@pytest.mark.long
def test_adapters_are_loaded_on_all_and_on_one_that_comes_later_when_a_request_names_them(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    noted = tmp_path / "journal"
    engine = fake_engine({**SLOW, "journal": str(noted)}, replicas=2, lora_adapters={"polite": POLITE}, **SMALL)

    def named(name: str) -> str:
        return engine.chat(question(), lora=name).model or ""

    engine.load_adapter("brief", BRIEF)
    assert states(engine) == [READY, STOPPED], "one is started for it, as of one engine"
    assert named("brief") == "brief"
    with ThreadPoolExecutor(8) as pool:
        wait_until(
            lambda: set(pool.map(named, ["brief", "polite"] * 4)) == {"brief", "polite"} and all(shares(engine)),
            20,
            "answers of the second",
        )
    assert loads(noted) == 4, "two on each, once"
    engine.load_adapter("again", BRIEF)
    assert loads(noted) == 6
    os.kill(server_pid(alone(engine)[1]), signal.SIGKILL)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(named, ["brief", "again"] * 10)) == {"brief", "again"}
    engine.unload_adapter("brief")
    with pytest.raises(InvalidInputError, match="there is no such adapter"):
        named("brief")
    with pytest.raises(InvalidInputError, match="'brief'"):
        engine.unload_adapter("brief")
    ask(engine)


def loads(noted: Path) -> int:
    return sum(event == "loaded" for event, *_ in journal(noted))


def test_an_adapter_that_somebody_unloads_is_loaded_again(fake_engine: MakeEngine) -> None:
    engine = fake_engine(replicas=2, start="all", lora_adapters={"brief": BRIEF})
    engine.warmup()
    assert {engine.chat(question(), lora="brief").model for _ in range(12)} == {"brief"}
    for one in alone(engine):
        one.unload_adapter("brief")
    assert {engine.chat(question(), lora="brief").model for _ in range(12)} == {"brief"}


# ---- looks and ends


def test_looking_starts_nothing(fake_engine: MakeEngine) -> None:
    engine = fake_engine(replicas=2)
    assert not engine.is_ready()
    info = engine.status(processes=True)
    assert (info.state, info.model, [member.member for member in info.members]) == (
        STOPPED,
        engine.settings.model,
        ["cpu:0", "cpu:2"],
    )
    assert engine.metrics() == {}
    assert engine.stats().requests.requests == 0
    engine.evict()
    engine.shutdown()
    assert states(engine) == [STOPPED, STOPPED]


def test_status_stats_and_metrics_tell_of_each_and_of_all(fake_engine: MakeEngine) -> None:
    engine = fake_engine(replicas=2, start="all")
    engine.warmup()
    ask(engine, 8)
    info, stats, metrics = engine.status(processes=True), engine.stats(), engine.metrics()
    assert info.state is READY
    assert info.starts == 2
    assert info.memory_bytes == sum(member.memory_bytes or 0 for member in info.members) > 0
    assert EngineInfo(**{**vars(info), "members": ()}).to_json()["state"] == "ready"
    assert metrics["generation_tokens"] == stats.counters["generation_tokens"] == 8 * 9
    assert stats.requests.successes == sum(shares(engine)) == 8
    assert [member.member for member in stats.members] == ["cpu:0", "cpu:2"]
    assert stats.life is not None
    assert stats.life.starts == 2
    assert stats.requests.latency.count == 8
    engine.reset_stats()
    assert engine.stats().requests.requests == sum(shares(engine)) == 0


def test_evict_and_shutdown_end_all(fake_engine: MakeEngine) -> None:
    engine = fake_engine(replicas=2, start="all")
    engine.warmup()
    engine.evict()
    assert states(engine) == [STANDBY, STANDBY]
    ask(engine)
    engine.shutdown()
    wait_until(lambda: STOPPED in states(engine), 5, "them to stop")
    ask(engine)
    began = time.monotonic()
    engine.shutdown(force=True)
    assert states(engine) == [STOPPED, STOPPED]
    assert time.monotonic() - began < 15


def test_replicas_take_no_further_members(fake_engine: MakeEngine) -> None:
    with pytest.raises(SettingsError, match="replicas are no fleet"):
        fake_engine(replicas=2).fleet.add("http://x")


def test_each_gpu_set_is_an_engine_of_its_own(fake_engine: MakeEngine, fake_cuda_python: str) -> None:
    engine = fake_engine(python=fake_cuda_python, gpu_ids=[["GPU-a", "GPU-b"], ["GPU-c", "GPU-d"]], start="all")
    engine.warmup()
    assert [member.devices for member in engine.status().members] == [
        ("cuda:GPU-a", "cuda:GPU-b"),
        ("cuda:GPU-c", "cuda:GPU-d"),
    ]
    by_hand = Engine(
        **{
            **engine.settings.model_dump(exclude_unset=True, exclude={"gpu_ids", "start"}),
            "visible_devices": "GPU-c,GPU-d",
            "tensor_parallel_size": 2,
        }
    )
    assert by_hand.is_ready()


def test_one_asleep_wakes_for_the_next_request(fake_engine: MakeEngine, fake_cuda_python: str) -> None:
    engine = fake_engine(python=fake_cuda_python, gpu_ids=["GPU-e", "GPU-f"], sleep_after_s=0.5)
    ask(engine)
    wait_until(lambda: states(engine)[0] is EngineState.ASLEEP, 10, "it to sleep")
    ask(engine)
    assert states(engine) == [READY, STOPPED]
