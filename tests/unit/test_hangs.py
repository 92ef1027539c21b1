"""What tells an engine that works from one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shared_engine.supervisor.hangs import (
    Activity,
    HangDetector,
    HangWatch,
    StallWatch,
    Verdict,
    WatchedClock,
    answers_a_prompt,
    read_activity,
    read_metrics,
)
from shared_engine.supervisor.http import http

FINE, ASK, HUNG = Verdict.FINE, Verdict.ASK, Verdict.HUNG
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/Qwen/Qwen3-4B"} 2.0
vllm:num_requests_running{engine="1",model_name="/models/Qwen/Qwen3-4B"} 0.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="/models/Qwen/Qwen3-4B"} 1.0
vllm:num_requests_waiting{engine="1",model_name="/models/Qwen/Qwen3-4B"} 0.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests broken down by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="/models/Qwen/Qwen3-4B",reason="capacity"} 1.0
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="/models/Qwen/Qwen3-4B"} 20.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="/models/Qwen/Qwen3-4B"} 23.0
vllm:iteration_tokens_total_count{engine="0",model_name="/models/Qwen/Qwen3-4B"} 23.0
vllm:iteration_tokens_total_sum{engine="0",model_name="/models/Qwen/Qwen3-4B"} 90.0
vllm:iteration_tokens_total_count{engine="1",model_name="/models/Qwen/Qwen3-4B"} 1e+06
"""


def test_activity_is_read_by_engine_core() -> None:
    assert read_activity(METRICS) == Activity({"0": 23.0, "1": 1e6}, {"0": 3.0, "1": 0.0})


@pytest.mark.parametrize("metrics", ["", 'python_gc_objects_collected_total{generation="0"} 9.0\n', "\x00\n{}"])
def test_no_activity_where_vllm_keeps_no_statistics(metrics: str) -> None:
    assert read_activity(metrics) == Activity()


def one(steps: float, requests: float = 1) -> Activity:
    return Activity({"0": steps}, {"0": requests})


def two(steps: tuple[float, float], requests: tuple[float, float] = (1, 1)) -> Activity:
    return Activity(dict(zip("01", steps, strict=True)), dict(zip("01", requests, strict=True)))


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param([(0, one(5), FINE), (9, one(6), FINE), (18, one(7), FINE), (27, one(8), FINE)], id="steps_move"),
        pytest.param([(0, one(5), FINE), (9, one(5), FINE), (10, one(5), HUNG)], id="no_step_with_requests"),
        pytest.param([(0, one(5), FINE), (9, one(6), FINE), (18, one(6), FINE), (19, one(6), HUNG)], id="it_stops"),
        pytest.param([(0, one(5), FINE), (9, one(1), FINE), (18, one(2), FINE)], id="the_counter_begins_anew"),
        pytest.param([(0, one(5, 0), FINE), (9, one(5, 0), FINE), (10, one(5, 0), ASK)], id="no_requests_known"),
        pytest.param([(0, Activity(), FINE), (9, Activity(), FINE), (10, Activity(), ASK)], id="no_statistics"),
        pytest.param([(0, None, FINE), (9, None, FINE), (10, None, HUNG)], id="silent"),
        pytest.param(
            [(0, one(5), FINE), (5, None, FINE), (9, one(6), FINE), (18, None, FINE)], id="silent_for_a_while"
        ),
        pytest.param([(5, one(5), FINE), (10, None, FINE), (14, None, FINE), (15, None, HUNG)], id="silent_later"),
        pytest.param([(0, two((1, 1)), FINE), (9, two((2, 1)), FINE), (10, two((3, 1)), HUNG)], id="one_of_two_stuck"),
        pytest.param(
            [(0, two((1, 1), (1, 0)), FINE), (9, two((2, 1), (1, 0)), FINE), (10, two((3, 1), (1, 0)), ASK)],
            id="one_of_two_idle_as_far_as_is_known",
        ),
        pytest.param(
            [(0, two((1, 1), (0, 0)), FINE), (9, two((1, 1), (0, 0)), FINE), (10, two((1, 1), (0, 0)), ASK)],
            id="both_idle",
        ),
        pytest.param(
            [
                (0, two((1, 1), (1, 0)), FINE),
                (9, two((2, 1), (1, 0)), FINE),
                (18, two((3, 1), (1, 1)), FINE),
                (27, two((4, 1), (1, 1)), FINE),
                (28, two((5, 1), (1, 1)), HUNG),
            ],
            id="one_of_two_was_idle_and_gets_a_request",
        ),
        pytest.param(
            [(0, one(5, 0), FINE), (9, one(5, 0), FINE), (12, one(5, 1), FINE), (15, one(6, 1), FINE)],
            id="a_request_comes_to_an_idle_core_while_another_is_read_slowly",
        ),
    ],
)
def test_verdict_with_a_limit_of_ten_seconds(looks: list[tuple[float, Activity | None, Verdict]]) -> None:
    watch = HangWatch(0)
    assert [watch.look(now, activity, 10) for now, activity, _ in looks] == [verdict for *_, verdict in looks]


def test_an_answer_gives_it_the_whole_time_again() -> None:
    watch = HangWatch(0)
    assert watch.look(0, one(5, 0), 10) is FINE
    assert watch.look(11, one(5, 0), 10) is ASK
    watch.answered(11)
    assert watch.look(12, one(5), 10) is FINE
    assert watch.look(21, one(5), 10) is FINE
    assert watch.look(22, one(5), 10) is HUNG


@pytest.mark.parametrize(
    ("looks", "is_stalled"),
    [
        pytest.param([(9, 1, 0.0), (18, 2, 0.0), (27, 3, 0.0)], False, id="the_log_grows"),
        pytest.param([(9, 0, 1.0), (18, 0, 2.0), (27, 0, 3.0)], False, id="the_processor_is_used"),
        pytest.param([(3, 0, 0.01), (6, 0, 0.02), (9, 0, 0.03), (12, 0, 0.04)], True, id="it_only_wakes_up"),
        pytest.param([(9, 0, 0.0), (10, 0, 0.0)], True, id="nothing"),
        pytest.param([(9, 5, 0.0), (10, 5, 0.0), (18, 5, 0.0)], False, id="not_yet"),
        pytest.param([(9, 5, 0.0), (10, 5, 0.0), (19, 5, 0.0)], True, id="it_stops"),
        pytest.param(
            [(1, 0, 500.0), (5, 0, 20.0), (9, 0, 24.0), (13, 0, 28.0)],
            False,
            id="helpers_that_used_much_have_ended",
        ),
    ],
)
def test_a_start_is_stalled_after_ten_quiet_seconds(looks: list[tuple[float, int, float]], is_stalled: bool) -> None:
    watch = StallWatch(0)
    watch.is_stalled(0, 0, 0.0, 0.0, 10)
    assert [watch.is_stalled(*look, 0.0, 10) for look in looks][-1] is is_stalled


@pytest.mark.parametrize(("share", "is_stalled"), [(0.97, False), (0.1, True)])
def test_a_start_that_gets_no_processor_is_not_stalled(share: float, is_stalled: bool) -> None:
    watch = StallWatch(0)
    assert [watch.is_stalled(now, 0, 0.0, share * now, 10) for now in (0, 4, 8, 12)][-1] is is_stalled


def test_time_in_which_nobody_looked_does_not_count() -> None:
    readings = iter([100.0, 101.0, 102.0, 132.0, 133.0])
    clock = WatchedClock(5.0, lambda: next(readings))
    assert [clock.now() for _ in range(4)] == [1.0, 2.0, 7.0, 8.0]


# ---- asking

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(data: bytes) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"


@pytest.mark.parametrize(
    ("handle", "activity", "answers"),
    [
        (answering(OK + METRICS.encode()), read_activity(METRICS), True),
        (answering(b"HTTP/1.1 404 Not Found\r\n\r\n{}"), Activity(), True),
        (answering(OK + b"\xff\xfe"), Activity(), True),
        (answering(b""), None, False),
        (answering(b"what?\r\n\r\n"), None, False),
        (silent, None, False),
    ],
    ids=["metrics", "refused", "nonsense", "nothing", "no_http", "silent"],
)
async def test_answers_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handle: Handle, activity: Activity | None, answers: bool
) -> None:
    monkeypatch.setattr("shared_engine.supervisor.hangs.METRICS_TIMEOUT_S", 0.1)
    path = str(tmp_path / "s.sock")
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        await handle(reader, writer)
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, path):
        assert await read_metrics(path) == activity
        assert await answers_a_prompt(path, "model", 0.1) is answers
        await asyncio.wait(connections)


async def test_no_server_is_no_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    assert await read_metrics(path) is None
    assert not await answers_a_prompt(path, "model", 0.1)
    with pytest.raises(OSError, match=r"No such file"):
        await http(path, "GET", "/health", 0.1)


@pytest.mark.parametrize(("is_runnable", "is_stalled"), [(True, False), (False, True)])
def test_a_start_that_gets_no_processor_at_all_does_not_hang(is_runnable: bool, is_stalled: bool) -> None:
    """The kernel counts a wait only when it is over."""
    watch = StallWatch(0.0)
    assert not watch.is_stalled(0.0, 10, 1.0, 0.0, 4.0)
    assert not watch.is_stalled(3.9, 10, 1.0, 0.0, 4.0, lambda: pytest.fail("asked before it is decided"))
    assert watch.is_stalled(4.1, 10, 1.0, 0.0, 4.0, lambda: is_runnable) is is_stalled


def of_two_cores(steps: int) -> bytes:
    """/metrics where one core makes steps, and of the other no request is known."""
    return "".join(
        f'vllm:iteration_tokens_total_count{{engine="{core}"}} {count}\n'
        f'vllm:num_requests_running{{engine="{core}"}} {running}\n'
        for core, count, running in ((0, steps, 1), (1, 5, 0))
    ).encode()


@pytest.mark.slow
@pytest.mark.parametrize("answers", [True, False])
async def test_a_core_that_is_silent_while_another_works_is_asked_by_its_number(tmp_path: Path, answers: bool) -> None:
    """What vLLM has sent to a core that stands still is in no metric: only that core can tell."""
    asked: list[str] = []
    tasks: set[asyncio.Task[None]] = set()
    steps = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal steps
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            steps += 1
            writer.write(OK + of_two_cores(steps))
        else:
            asked.extend(line for line in head.split("\r\n") if line.lower().startswith("x-data"))
            if answers:
                writer.write(OK + b"{}")
            else:
                await reader.read()  # until whoever asks has had enough
        writer.close()

    path, detector = str(tmp_path / "s.sock"), HangDetector()
    async with await asyncio.start_unix_server(handle, path):
        verdicts = []
        deadline = asyncio.get_running_loop().time() + 10
        while not asked and asyncio.get_running_loop().time() < deadline:
            verdicts.append(await detector.is_hung(path, "model", 0.2))
            await asyncio.sleep(0.01)
        await asyncio.wait(tasks)
    assert asked == ["X-data-parallel-rank: 1"]
    assert verdicts[-1] is not answers
    assert not any(verdicts[:-1])


@pytest.mark.slow
async def test_a_process_that_was_stopped_hangs_though_the_others_work(tmp_path: Path) -> None:
    steps = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal steps
        await reader.readuntil(b"\r\n\r\n")
        steps += 1
        writer.write(OK + f'vllm:iteration_tokens_total_count{{engine="0"}} {steps}\n'.encode())
        writer.close()

    path, detector, is_stopped = str(tmp_path / "s.sock"), HangDetector(), False
    began = asyncio.get_running_loop().time()

    async def is_hung_after(duration_s: float) -> bool:
        until = asyncio.get_running_loop().time() + duration_s
        while asyncio.get_running_loop().time() < until:
            if await detector.is_hung(path, "model", 0.4, lambda: is_stopped):
                return True
            await asyncio.sleep(0.01)
        return False

    async with await asyncio.start_unix_server(handle, path):
        assert not await is_hung_after(0.8)
        is_stopped = True
        assert not await is_hung_after(0.2)
        is_stopped = False  # it was let go on in time
        assert not await is_hung_after(0.5)
        is_stopped = True
        assert await is_hung_after(5)
    assert asyncio.get_running_loop().time() - began < 6


@pytest.mark.slow
@pytest.mark.parametrize("works", [True, False])
async def test_without_statistics_an_engine_that_is_full_works_as_long_as_its_processes_do(
    tmp_path: Path, works: bool
) -> None:
    """A prompt of ours waits behind all others there."""
    handling: set[asyncio.Task[None]] = set()
    prompts = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal prompts
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            writer.write(OK)
        else:
            prompts += 1
            await reader.read()
        writer.close()

    def are_still(watch: StallWatch, now: float, limit_s: float) -> bool:
        return watch.is_stalled(now, 0, now if works else 0.0, 0.0, limit_s)

    path, detector = str(tmp_path / "s.sock"), HangDetector()
    is_hung = False
    async with await asyncio.start_unix_server(handle, path):
        until = asyncio.get_running_loop().time() + (0.6 if works else 10.0)
        while not is_hung and asyncio.get_running_loop().time() < until:
            is_hung = await detector.is_hung(path, "model", 0.2, are_still=are_still)
            await asyncio.sleep(0.01)
        await asyncio.wait(handling)
    assert is_hung is not works
    assert bool(prompts) is not works


def test_without_statistics_work_excuses_silence_for_a_while_only() -> None:
    """Many hangs spin."""
    watch, works = HangWatch(0.0), Activity({}, {}, {})
    looks = [(now, watch.look(now, works, 10.0, lambda *_: False)) for now in map(float, range(1, 60))]
    assert {verdict for now, verdict in looks if now < 49} == {Verdict.FINE}
    assert {verdict for now, verdict in looks if now >= 49} == {Verdict.ASK}
    watch.answered(60.0)
    assert watch.look(61.0, works, 10.0, lambda *_: False) is Verdict.FINE
