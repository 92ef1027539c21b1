"""Several engines on one device: turns to start, and room for one another."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineStartError, EngineStartTimeoutError, EngineState
from shared_engine.runtime.messages import StartProgress
from shared_engine.runtime.progress import StartPhase
from tests.fake.conftest import MakeEngine
from tests.support.callers import (
    ANSWER,
    HELLO,
    calls,
    directory_of,
    ensure_ready,
    error_of,
    hello,
    journal,
    log_of,
    server_pid,
    transitions,
    wait_for,
)
from tests.support.fake_nvml import GIB, A, B, FakeNvml, gpu
from tests.support.paths import TINY_CHAT
from tests.support.processes import all_processes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
READY, STANDBY, ASLEEP = EngineState.READY, EngineState.STANDBY, EngineState.ASLEEP
Neighbour = Callable[..., Engine]
_devices = itertools.count()


@pytest.fixture
def neighbour(fake_engine: MakeEngine, fake_cuda_python: str, tmp_path: Path) -> Neighbour:
    """Makes engines of models with a name, on a device that no other test uses."""
    device = f"GPU-{next(_devices)}"

    def make(name: str, faults: dict[str, Any] | None = None, **settings: Any) -> Engine:
        model = tmp_path / name
        if not model.exists():
            model.mkdir()
            shutil.copy(TINY_CHAT / "config.json", model / "config.json")
        shape = {"journal": str(tmp_path / "journal"), **(faults or {})}
        return fake_engine(
            shape, **{"model": str(model), "python": fake_cuda_python, "visible_devices": device, **settings}
        )

    return make


@pytest.fixture
def in_background() -> Iterator[Callable[[Engine], Future[str]]]:
    """Calls that must end by themselves."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda engine: pool.submit(hello, engine)


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A file that holds starts up: see ``held_by``."""
    file = tmp_path / "held"
    file.touch()
    return file


def says(engine: Engine, words: str) -> Callable[[], bool]:
    """Whether the start waits for something, in these words."""
    return lambda: words in str(engine.status().progress or "")


# ---- turns


def test_starts_on_one_device_take_turns_and_say_who_is_waited_for(
    neighbour: Neighbour, tmp_path: Path, held: Path
) -> None:
    one, two = (neighbour(name, {"held_by": str(held)}) for name in ("one", "two"))
    with calls(one, two) as waiting:
        wait_until(
            lambda: (
                says(one, "waiting for the device (two starts)")() or says(two, "waiting for the device (one starts)")()
            ),
            10,
            "one to wait for the other",
        )
        held.unlink()
    assert [each.result() for each in waiting] == [ANSWER] * 2
    assert [event for event, *_ in journal(tmp_path / "journal")] == ["begin", "ready"] * 2
    assert one.status().state is two.status().state is READY, "there is memory for both"


def test_a_failed_start_ends_its_turn(neighbour: Neighbour) -> None:
    failing, other = neighbour("failing", {"exit_at": "weights", "start_delay_s": 0.4}), neighbour("other")
    with ThreadPoolExecutor(2) as pool:
        failed = pool.submit(error_of, failing)
        assert pool.submit(hello, other).result() == ANSWER
    assert isinstance(failed.result(), EngineStartError)


def test_engines_on_different_devices_neither_wait_nor_leave(neighbour: Neighbour, tmp_path: Path, held: Path) -> None:
    one = neighbour("one", {"held_by": str(held)}, visible_devices="GPU-a")
    two = neighbour("two", {"held_by": str(held)}, visible_devices="GPU-b", max_loaded_engines=1)
    noted = tmp_path / "journal"
    with calls(one, two):
        wait_until(lambda: noted.exists() and len(journal(noted)) == 2, 20, "both to begin")
        held.unlink()
    assert [event for event, *_ in journal(tmp_path / "journal")] == ["begin", "begin", "ready", "ready"]
    assert one.status().state is two.status().state is READY


# ---- memory


@pytest.mark.smoke
def test_an_idle_neighbour_leaves_when_memory_is_short(neighbour: Neighbour, tmp_path: Path) -> None:
    memory = {"memory": str(tmp_path / "device")}
    first, second = neighbour("first", memory), neighbour("second", memory)
    assert hello(first) == ANSWER
    assert hello(second) == ANSWER
    assert (first.status().state, second.status().starts) == (STANDBY, 2)
    assert "not enough memory: evicted first" in log_of(second)
    assert hello(first) == ANSWER, "and back"
    assert second.status().state is STANDBY


def test_a_sleeping_neighbour_leaves_too(neighbour: Neighbour) -> None:
    first = neighbour("first", sleep_after_s=0.1)
    first.warmup()
    wait_for(first, ASLEEP)
    second = neighbour("second", {"needs_gone": first.status().socket})
    assert hello(second) == ANSWER
    assert transitions(first)[-2:] == ["asleep -> stopping", "stopping -> standby"]


def test_one_that_sleeps_stays_where_one_that_is_awake_gives_the_memory(
    neighbour: Neighbour, fake_gpus: FakeNvml
) -> None:
    fake_gpus.show(gpu(A, free=79 * GIB))
    sleeper = neighbour("sleeper", visible_devices=A, sleep_after_s=0.1)
    sleeper.warmup()
    wait_for(sleeper, ASLEEP)
    awake, last = (neighbour(name, visible_devices=A) for name in ("awake", "last"))
    assert hello(awake) == ANSWER
    fake_gpus.show(gpu(A, free=1 * GIB))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hello, last)
        wait_for(awake, STANDBY)
        fake_gpus.show(gpu(A, free=79 * GIB))
        assert waiting.result() == ANSWER
    assert sleeper.status().state is ASLEEP


def test_of_two_that_are_to_leave_for_a_limit_the_sleeper_is_no_exception(neighbour: Neighbour) -> None:
    sleeper = neighbour("sleeper", sleep_after_s=0.1)
    sleeper.warmup()
    wait_for(sleeper, ASLEEP)
    awake, last = neighbour("awake"), neighbour("last", max_loaded_engines=2)
    assert hello(awake) == hello(last) == ANSWER
    assert (sleeper.status().state, awake.status().state) == (STANDBY, READY)


def test_who_uses_two_in_turn_that_do_not_fit_together_is_told_once(
    neighbour: Neighbour, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = {"memory": str(tmp_path / "device")}
    first, second = neighbour("first", memory), neighbour("second", memory, gpu_memory_utilization=0.8)
    for engine in (first, second, first, second, first):
        assert hello(engine) == ANSWER
    told = [record.getMessage() for record in caplog.records if "made room" in record.getMessage()]
    assert len(told) == 2, "each of the two is said once"
    assert "first made room for second: " in told[0]
    assert "lower gpu_memory_utilization of each (it is 0.8 here)" in told[0]
    assert "second made room for first: " in told[1]


def test_a_limit_of_engines_that_the_user_has_set_is_nothing_to_tell(
    neighbour: Neighbour, caplog: pytest.LogCaptureFixture
) -> None:
    for engine in (neighbour("first"), neighbour("second", max_loaded_engines=1)):
        assert hello(engine) == ANSWER
    assert "made room" not in caplog.text


def test_a_start_that_lacked_memory_is_tried_again_as_soon_as_the_neighbour_is_gone(neighbour: Neighbour) -> None:
    first = neighbour("first")
    first.warmup()
    second = neighbour("second", {"needs_gone": first.status().socket})
    began = time.monotonic()
    assert hello(second) == ANSWER
    assert time.monotonic() - began < 4


def test_a_sleeper_whose_memory_another_has_taken_is_started_anew_in_its_place(
    neighbour: Neighbour, tmp_path: Path
) -> None:
    memory = {"memory": str(tmp_path / "device")}
    sleeper, other = neighbour("sleeper", memory, sleep_after_s=0.1), neighbour("other", memory)
    sleeper.warmup()
    wait_for(sleeper, ASLEEP)
    assert hello(other) == ANSWER
    assert sleeper.status().state is ASLEEP, "there was room"
    assert hello(sleeper) == ANSWER
    assert other.status().state is STANDBY


def test_a_sleeper_that_would_not_get_its_memory_back_sleeps_on_and_its_error_says_who_has_it(
    neighbour: Neighbour, fake_gpus: FakeNvml
) -> None:
    fake_gpus.show(gpu(A, free=79 * GIB))
    sleeper = neighbour("sleeper", visible_devices=A, sleep_after_s=0.1)
    sleeper.warmup()
    wait_for(sleeper, ASLEEP)
    pinned = neighbour("first", visible_devices=A, pinned=True)
    assert hello(pinned) == ANSWER
    own = f"process {server_pid(sleeper)} {2 * GIB}"
    fake_gpus.show(gpu(A, free=1 * GIB), own)
    error = error_of(sleeper)
    assert isinstance(error, EngineStartError)
    assert error.message == (
        f"the engine did not wake up: cuda:{A} has 3.00 of 80.00 GiB free, 72.00 are needed; "
        "also loaded on the device: first (pinned)"
    )
    assert sleeper.status().state is ASLEEP
    fake_gpus.show(gpu(A, free=71 * GIB), own)
    assert hello(sleeper) == ANSWER, "it has 2 GiB already"
    assert (sleeper.status().starts, pinned.status().state) == (1, READY)


def test_nobody_leaves_when_nothing_is_short(neighbour: Neighbour) -> None:
    engines = [neighbour(name) for name in ("one", "two", "three")]
    for engine in engines:
        assert hello(engine) == ANSWER
    assert [engine.status().state for engine in engines] == [READY] * 3


def test_nobody_leaves_for_a_start_that_fails_for_another_reason(neighbour: Neighbour) -> None:
    idle, failing = neighbour("idle"), neighbour("failing", {"exit_at": "weights"})
    assert hello(idle) == ANSWER
    assert "exit code 0" in error_of(failing).message
    assert idle.status().state is READY


def test_a_busy_neighbour_stays_and_the_error_names_it(neighbour: Neighbour, tmp_path: Path) -> None:
    memory = {"memory": str(tmp_path / "device")}
    busy = neighbour("busy-model", {**memory, "token_delay_s": 0.2})
    stream = busy.stream_chat(HELLO, extra_body={"ignore_eos": True}, max_tokens=500)
    next(stream)
    other = neighbour("other", memory)
    error = error_of(other)
    assert isinstance(error, EngineStartError)
    assert "less than desired GPU memory" in error.message
    assert "also loaded on the device: busy-model (busy)" in error.message
    assert next(stream).text
    stream.close()
    assert busy.status().starts == 1
    wait_until(lambda: busy.metrics()["num_requests_running"] == 0, 10, "it to be idle")
    assert hello(other) == ANSWER, "the next try finds it idle"


def test_a_pinned_neighbour_stays_and_the_error_names_it(neighbour: Neighbour, tmp_path: Path) -> None:
    memory = {"memory": str(tmp_path / "device")}
    pinned, other = neighbour("first", memory, pinned=True), neighbour("other", memory)
    assert hello(pinned) == ANSWER
    assert "also loaded on the device: first (pinned)" in error_of(other).message
    assert pinned.status().state is READY
    pinned.evict()
    assert hello(other) == ANSWER, "its owner may still evict it"


def test_two_that_want_the_same_room_at_once_are_both_served(neighbour: Neighbour, tmp_path: Path) -> None:
    memory = {"memory": str(tmp_path / "device")}
    engines = [neighbour(name, memory, max_retries=0) for name in ("first", "second", "third")]
    assert hello(engines[0]) == ANSWER
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(served_or_refused, engines))
        assert "" in outcomes
        assert all(not each or ("less than desired" in each and "(busy)" in each) for each in outcomes), outcomes


def served_or_refused(engine: Engine) -> str:
    try:
        assert hello(engine) == ANSWER
    except EngineStartError as exc:
        return exc.message
    return ""


def test_what_a_device_is_known_to_lack_is_made_before_the_start(neighbour: Neighbour, fake_gpus: FakeNvml) -> None:
    other, full, free = gpu(B, "NVIDIA L4"), gpu(A, free=1 * GIB), gpu(A, free=79 * GIB)
    fake_gpus.show(other, free)
    old, idle, last = (neighbour(name, visible_devices=A) for name in ("old", "idle", "last"))
    assert hello(old) == hello(idle) == ANSWER
    assert old.status().state is READY
    fake_gpus.show(other, full)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hello, last)
        wait_for(old, STANDBY)
        fake_gpus.show(other, free)
        assert waiting.result() == ANSWER
    assert last.status().starts == 1, "no start was tried in vain"
    assert idle.status().state is READY, "one was enough"
    assert f"cuda:{A} has 1.00 of 80.00 GiB free, 72.00 are needed: evicted old" in log_of(last)


def test_a_number_means_the_device_that_cuda_gives_it_to(neighbour: Neighbour, fake_gpus: FakeNvml) -> None:
    """CUDA counts the fastest first, the driver by the bus: number 0 is the second one here."""
    fake_gpus.show(gpu(B, "NVIDIA L4", free=79 * GIB), gpu(A, free=1 * GIB), f"cuda {A}", f"cuda {B}")
    old, last = (neighbour(name, visible_devices="0") for name in ("old", "last"))
    assert hello(old) == hello(last) == ANSWER
    assert "cuda:0 has 1.00 of 80.00 GiB free, 72.00 are needed: evicted old" in log_of(last)


@pytest.mark.long
def test_a_device_is_the_same_one_by_its_number_and_its_uuid(neighbour: Neighbour, fake_gpus: FakeNvml) -> None:
    other, full = gpu(B, free=1 * GIB), gpu(A, free=1 * GIB)
    fake_gpus.show(other, full)
    elsewhere, old, last = (neighbour(f"at-{name}", visible_devices=name) for name in ("0", "1", A[:9]))
    assert [hello(each) for each in (elsewhere, old, last)] == [ANSWER] * 3
    assert [each.status().state for each in (elsewhere, old, last)] == [READY, STANDBY, READY]
    assert f"cuda:{A[:9]} has 1.00 of 80.00 GiB free, 72.00 are needed: evicted at-1" in log_of(last)
    locks = sorted(path.name for path in directory_of(last).path.parent.glob(f"cuda-{A}*.start"))
    assert locks == [f"cuda-{A}.start"]


# ---- max_loaded_engines


def test_of_several_idle_ones_the_least_recently_used_leaves(neighbour: Neighbour) -> None:
    one, two, three = (neighbour(name, max_loaded_engines=2) for name in ("one", "two", "three"))
    for engine in (one, two, one, three):
        assert hello(engine) == ANSWER
    assert [engine.status().state for engine in (one, two, three)] == [READY, STANDBY, READY]


def test_with_one_place_the_one_before_leaves(neighbour: Neighbour) -> None:
    engines = [neighbour(name, max_loaded_engines=1) for name in ("one", "two", "three")]
    for engine in (*engines, engines[0]):
        assert hello(engine) == ANSWER
        assert [each.status().state is READY for each in engines].count(True) == 1


def test_it_waits_for_a_place_while_all_are_busy_and_goes_on_then(
    neighbour: Neighbour, in_background: Callable[[Engine], Future[str]]
) -> None:
    busy, other = neighbour("busy-model", {"token_delay_s": 0.1}), neighbour("other", max_loaded_engines=1)
    stream = busy.stream_chat(HELLO, extra_body={"ignore_eos": True}, max_tokens=500)
    next(stream)
    waiting = in_background(other)
    wait_until(says(other, "max_loaded_engines = 1: busy-model is busy"), 10, "it to say so")
    assert not waiting.done()
    assert busy.status().state is READY
    stream.close()
    assert waiting.result() == ANSWER
    assert busy.status().state is STANDBY
    assert other.status().starts == 1


def test_a_wait_for_a_place_ends_with_the_start_s_time_and_says_why(neighbour: Neighbour) -> None:
    pinned, other = neighbour("pin", pinned=True), neighbour("other", max_loaded_engines=1, start_timeout_s=1)
    pinned.warmup()
    error = error_of(other)
    assert isinstance(error, EngineStartTimeoutError)
    assert "max_loaded_engines = 1: pin is pinned" in error.message
    assert pinned.status().state is READY


def test_a_place_that_gets_free_by_itself_is_taken(
    neighbour: Neighbour, in_background: Callable[[Engine], Future[str]]
) -> None:
    pinned, other = neighbour("pin", pinned=True), neighbour("other", max_loaded_engines=1)
    pinned.warmup()
    waiting = in_background(other)
    wait_until(says(other, "pin is pinned"), 10, "it to wait")
    pinned.shutdown()
    assert waiting.result() == ANSWER


@pytest.mark.long
def test_a_sleeper_that_is_asked_to_wake_and_one_that_waits_for_its_place_are_both_served(
    neighbour: Neighbour, in_background: Callable[[Engine], Future[str]], slow_to_end: MakeEngine
) -> None:
    """Each has what the other wants: the sleeper its place, the other the turn on the device."""
    slow = neighbour("slow")
    sleeper = neighbour("sleeper", sleep_after_s=0.1)
    other = neighbour("other", max_loaded_engines=1, start_timeout_s=15)
    slow.warmup()
    sleeper.warmup()
    wait_for(sleeper, ASLEEP)
    waiting = in_background(other)
    wait_for(slow, EngineState.STOPPING)  # which takes a while, with the turn held
    woken = in_background(sleeper)
    began = time.monotonic()
    assert [woken.result(), waiting.result()] == [ANSWER] * 2
    assert time.monotonic() - began < 14


def test_a_neighbour_whose_supervisor_was_killed_holds_no_place(neighbour: Neighbour) -> None:
    dead, other = (
        neighbour("dead", {"spawn_core": True, "start_delay_s": 0.5}),
        neighbour("other", max_loaded_engines=1),
    )
    dead.warmup()
    os.kill(dead.status().supervisor_pid or 0, signal.SIGKILL)
    assert hello(other) == ANSWER
    assert other.status().starts == 1
    assert dead.status().state is EngineState.STOPPED


def test_a_launcher_killed_while_it_waits_for_its_turn_is_replaced(
    neighbour: Neighbour, in_background: Any, held: Path
) -> None:
    first = neighbour("first", {"held_by": str(held)})
    second = neighbour("second")
    answers = [in_background(first)]
    wait_until(lambda: first.status().server_pid is not None, 10, "the first to have the turn")
    answers.append(in_background(second))
    wait_until(lambda: is_waiting_for_its_turn(second), 10, "the second to wait")
    os.kill(all_processes(second)[1], signal.SIGKILL)
    held.unlink()
    assert [answer.result(20) for answer in answers] == [ANSWER] * 2


def is_waiting_for_its_turn(engine: Engine) -> bool:
    progress = engine.status().progress
    return progress is not None and progress.phase is StartPhase.QUEUED


def test_a_neighbour_of_an_older_release_stays_and_harms_nobody(neighbour: Neighbour, in_background: Any) -> None:
    new = neighbour("new", max_loaded_engines=1)
    hello(old := neighbour("old"))
    control = directory_of(old).control_socket
    control.rename(control.with_name("hidden"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        waiting = in_background(new)
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'{"ok": false, "error": "unknown op"}\n')
        wait_until(lambda: "does not make room" in str(new.status().progress), 10, "it to be told")
    control.unlink()
    control.with_name("hidden").rename(control)
    assert waiting.result(20) == ANSWER, "and when it can be asked again, it leaves"


def test_wishes_end_with_the_start_they_were_made_for(neighbour: Neighbour) -> None:
    generous = neighbour("model", idle_ttl_s=60, pinned=True)
    modest = Engine(generous.settings.model_copy(update={"idle_ttl_s": 0.3, "pinned": False}))
    assert hello(modest) == hello(generous) == ANSWER
    generous.evict()
    assert hello(modest) == ANSWER
    wait_for(modest, STANDBY)


def test_who_comes_late_is_told_at_once_how_far_the_start_is(neighbour: Neighbour, in_background: Any) -> None:
    engine = neighbour("model", {"hang_at": "weights"}, start_timeout_s=4)
    first = in_background(engine)
    wait_until(lambda: "loading weights" in str(engine.status().progress), 10, "the weights")
    late = ensure_ready(engine, start_timeout_s=4)
    told = late.next()
    assert isinstance(told, StartProgress)
    assert told.progress.phase is StartPhase.WEIGHTS
    late.hang_up()
    with pytest.raises(EngineStartTimeoutError):
        first.result(20)
