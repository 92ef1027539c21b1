"""GPUMonitor, on a machine whose driver is a fake in C."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shared_engine import GPUAlert, GPUMonitor, GPUProcess, GPUStats, InvalidInputError
from shared_engine.gpu import alert_counts
from shared_engine.machine import nvml
from tests.support.fake_nvml import GIB, A, B, C, FakeNvml, gpu, instance
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def full(uuid: str) -> str:
    return gpu(uuid, free=1 * GIB, used=78 * GIB)


def uuids(monitor: GPUMonitor) -> list[str]:
    return [each.uuid for each in monitor.get_stats()]


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vllm-local-gpu"]


def test_the_code_on_the_page_runs(fake_gpus: FakeNvml, capsys: pytest.CaptureFixture[str]) -> None:
    fake_gpus.show(full(A), f"process 4194305 {2 * GIB}", gpu(B))
    code = "\n".join(re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "gpu.md").read_text(), re.DOTALL))
    exec(compile(code, "docs/gpu.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        *GPUMonitor().summary().splitlines(),
        f"0 NVIDIA H200 {78 * GIB} {80 * GIB} 35 45 120.5",
        f"4194305 ? {2 * GIB}",
        f"1 NVIDIA H200 {9 * GIB} {80 * GIB} 35 45 120.5",
        "room for another model",
        "0 98% in use",
        "1",
        f"['{A}']",
    ]


# ---- what it tells


def test_the_values_of_a_gpu(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), f"process 1 {GIB}", f"process {os.getpid()} {2 * GIB}", "process 4194305 -1")
    (stats,) = GPUMonitor().get_stats()
    assert stats.processes[0] == GPUProcess(pid=os.getpid(), name=stats.processes[0].name, memory_bytes=2 * GIB)
    assert stats.processes[0].name.startswith(("python", "pytest"))
    assert [(each.pid, each.memory_bytes) for each in stats.processes[1:]] == [(1, GIB), (4194305, None)]
    assert dataclasses.replace(stats, processes=()) == GPUStats(
        index=0,
        driver_index=0,
        uuid=A,
        name="NVIDIA H200",
        memory_used_bytes=9 * GIB,
        memory_free_bytes=70 * GIB,
        memory_total_bytes=80 * GIB,
        utilization_percent=35,
        temperature_c=45,
        power_w=120.5,
        processes=(),
    )
    assert stats.memory_share == 9 / 80
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.index = 1  # type: ignore[misc]


def test_the_summary(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), f"process 4194305 {2 * GIB}", gpu(B, "GB10", total=-1, busy=-1, milliwatts=-1))
    assert GPUMonitor().summary().splitlines() == [
        f"cuda:0 NVIDIA H200 ({A}): 9.0 of 80.0 GiB (11%), 35% busy, 45 °C, 120 W",
        "  4194305 ?: 2.0 GiB",
        f"cuda:1 GB10 ({B}): memory not told, 45 °C",
    ]


@pytest.mark.parametrize(
    ("machine", "environment", "device", "problem"),
    [
        ([], {}, None, "the NVIDIA driver shows none"),
        (["init 9"], {}, None, "the NVIDIA driver is not loaded"),
        ([gpu(A)], {"CUDA_VISIBLE_DEVICES": ""}, None, f"CUDA_VISIBLE_DEVICES = '' shows none of {A}"),
        ([gpu(A)], {"CUDA_VISIBLE_DEVICES": "-1"}, 0, f"CUDA_VISIBLE_DEVICES = '-1' shows none of {A}"),
        ([gpu(A)], {}, 3, "cuda:3 is not among the visible ones: there are 1"),
        ([gpu(A)], {}, "GPU-b", f"none, or more than one, is named GPU-b; there are {A}"),
        ([gpu(A, mig=True)], {}, None, f"{A}: in MIG mode, without an instance"),
    ],
)
def test_without_a_device_there_are_an_empty_list_and_words(
    fake_gpus: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    machine: list[str],
    environment: dict[str, str],
    device: Any,
    problem: str,
) -> None:
    fake_gpus.show(*machine)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monitor = GPUMonitor(device)
    assert monitor.problem is None
    assert monitor.get_stats() == []
    assert monitor.problem == problem
    assert monitor.summary() == f"no GPU: {problem}"
    assert not monitor.check_memory_available(0)
    assert not monitor.wait_for_memory(1, timeout=30)


def test_without_a_driver_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "no-driver.so")
    with GPUMonitor() as monitor:
        assert monitor.get_stats() == []
        assert monitor.summary() == "no GPU: there is no NVIDIA driver here (no-driver.so can't be loaded)"


def test_the_problem_is_over_when_there_is_a_device(fake_gpus: FakeNvml) -> None:
    monitor = GPUMonitor()
    assert uuids(monitor) == []
    fake_gpus.show(gpu(A))
    assert uuids(monitor) == [A]
    assert monitor.problem is None


# ---- which devices


@pytest.mark.parametrize(
    ("visible", "device", "seen"),
    [
        (None, None, [(0, A), (1, "MIG-1"), (2, C)]),
        (None, 0, [(0, A)]),
        (None, "2", [(2, C)]),
        (None, "cuda:2", [(2, C)]),
        ("2,0", None, [(0, C), (1, A)]),
        ("2,0", 0, [(0, C)]),
        ("2,0", "cuda:1", [(1, A)]),
        ("2,0", 2, []),
        ("MIG-1", None, [(0, "MIG-1")]),
        ("MIG-1", 0, [(0, "MIG-1")]),
        (C, A, [(None, A)]),  # a UUID means one device, visible or not
        (C, C[:8], [(0, C)]),
        ("", "MIG-1", [(None, "MIG-1")]),
    ],
)
def test_which_devices_it_looks_at(
    fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, device: Any, seen: list[Any]
) -> None:
    fake_gpus.show(gpu(A), gpu(B, mig=True), instance("MIG-1"), gpu(C))
    given = GPUMonitor(device, visible_devices=visible).get_stats()
    assert [(each.index, each.uuid) for each in given] == seen
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert GPUMonitor(device).get_stats() == given, "as by the environment"


@pytest.mark.parametrize("device", [-1, True, 1.5, "", "gpu0", "cuda:x", b"0"])
def test_a_device_that_is_not_a_name_of_one(device: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"device = .*must be a number"):
        GPUMonitor(device)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.9", True])
def test_a_threshold_that_is_not_a_share(threshold: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"threshold = .*from 0 to 1"):
        GPUMonitor(0, threshold)


# ---- memory


def test_memory_that_is_available(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, free=30 * GIB), gpu(B, free=60 * GIB))
    assert GPUMonitor().check_memory_available(60)
    assert not GPUMonitor().check_memory_available(60.1)
    assert GPUMonitor(0).check_memory_available(30)
    assert not GPUMonitor(0).check_memory_available(31)


@pytest.mark.parametrize("gb", [-1, float("nan"), "8", None])
def test_memory_that_is_not_a_number(gb: Any) -> None:
    for ask in (GPUMonitor().check_memory_available, GPUMonitor().wait_for_memory):
        with pytest.raises(InvalidInputError, match="gb = "):
            ask(gb)


Wait = Callable[[GPUMonitor, float, float], bool]
each_wait = pytest.mark.parametrize(
    "wait",
    [
        lambda monitor, gb, timeout: monitor.wait_for_memory(gb, timeout),
        lambda monitor, gb, timeout: asyncio.run(monitor.await_for_memory(gb, timeout)),
    ],
    ids=["thread", "loop"],
)


@pytest.mark.slow
@each_wait
def test_memory_is_waited_for(fake_gpus: FakeNvml, wait: Wait) -> None:
    fake_gpus.show(gpu(A, free=1 * GIB))
    timer = threading.Timer(0.5, fake_gpus.show, [gpu(A, free=50 * GIB)])
    timer.start()
    assert wait(GPUMonitor(), 50, 30)
    timer.join()


@pytest.mark.slow
@each_wait
def test_the_wait_for_memory_ends(fake_gpus: FakeNvml, wait: Wait) -> None:
    fake_gpus.show(gpu(A, free=1 * GIB))
    began = time.monotonic()
    assert not wait(GPUMonitor(), 50, 0.4)
    assert time.monotonic() - began >= 0.4


@each_wait
def test_more_memory_than_there_is_is_not_waited_for(
    fake_gpus: FakeNvml, wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared_engine")
    fake_gpus.show(gpu(A, total=80 * GIB))
    assert not wait(GPUMonitor(), 81, 3600)
    assert "81 GiB of GPU memory are not waited for: no device has that much" in caplog.text


# ---- alerts


def test_an_alert_for_each_time_that_the_threshold_is_crossed(
    fake_gpus: FakeNvml, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[GPUAlert] = []
    monitor = GPUMonitor(threshold=0.9, on_alert=heard.append)
    before = alert_counts().get(A, 0)
    for machine, alerts in [
        ([gpu(A)], 0),
        ([gpu(A, free=8 * GIB, used=72 * GIB)], 0),  # as much as the threshold is not more than it
        ([full(A)], 1),
        ([full(A), gpu(B)], 1),
        ([full(A), full(B)], 2),
        ([gpu(A), full(B)], 2),
        ([full(A), full(B)], 3),
        ([gpu(A, total=-1), full(B)], 3),
    ]:
        fake_gpus.show(*machine)
        monitor.get_stats()
        assert monitor.alerts == alerts
    assert [alert.stats.uuid for alert in heard] == [A, B, A]
    assert alert_counts()[A] == before + 2
    (first, *_) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert first.name == "shared_engine.gpu"
    assert first.getMessage() == f"cuda:0 NVIDIA H200 ({A}): 78.0 of 80.0 GiB in use, more than 90%"


def test_any_look_alerts(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(full(A))
    for look in (GPUMonitor.summary, lambda monitor: monitor.check_memory_available(1)):
        monitor = GPUMonitor()
        look(monitor)
        assert monitor.alerts == 1


def test_a_callback_that_fails_is_logged(fake_gpus: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    fake_gpus.show(full(A))

    def fail(alert: GPUAlert) -> None:
        raise KeyError("mine")

    assert len(GPUMonitor(on_alert=fail).get_stats()) == 1
    assert "on_alert of GPUMonitor(device=None, threshold=0.9) failed" in caplog.text
    assert "KeyError: 'mine'" in caplog.text


def test_it_looks_by_itself_until_it_is_stopped(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A))
    monitor = GPUMonitor()
    monitor.start(interval_s=0.05)
    monitor.start(interval_s=0.05)
    assert len(watchers()) == 1
    fake_gpus.show(full(A))
    wait_until(lambda: monitor.alerts == 1, 10, "an alert")
    monitor.stop()
    assert watchers() == []
    monitor.stop()
    with monitor:
        assert len(watchers()) == 1
    assert watchers() == []


def test_a_callback_may_stop_its_monitor(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(full(A))
    monitor = GPUMonitor(on_alert=lambda alert: monitor.stop())
    monitor.start(interval_s=0.05)
    wait_until(lambda: monitor.alerts == 1 and not watchers(), 10, "the end of the watch")


def test_a_monitor_that_nobody_has_any_more_looks_no_more(fake_gpus: FakeNvml) -> None:
    monitor = GPUMonitor()
    monitor.start(interval_s=0.05)
    del monitor
    gc.collect()
    wait_until(lambda: not watchers(), 10, "the end of the watch")


def test_in_a_forked_child_a_monitor_can_be_started_again(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A))
    monitor = GPUMonitor()
    monitor.start(interval_s=0.05)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_watched_in_child) == (0, 1, 0)
    monitor.stop()


def _watched_in_child() -> tuple[int, int, int]:
    monitor = GPUMonitor()
    counts = [len(watchers())]
    monitor.start(0.05)
    counts.append(len(watchers()))
    monitor.stop()
    return counts[0], counts[1], len(watchers())
