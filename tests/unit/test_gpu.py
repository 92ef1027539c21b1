"""GPUs as the driver's library tells of them, read by its real calls; the library is a fake in C."""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pynvml
import pytest

from shared_engine.machine import gpu as machine_gpu
from shared_engine.machine import nvml
from shared_engine.machine.gpu import (
    BY_BUS,
    find_gpus,
    gpu_memory_by_process,
    in_cuda_order,
    look_at_gpus,
    visible_gpus,
    wait_released,
)
from shared_engine.machine.memory import GIB, MemoryNeed, ram, shortfall
from shared_engine.machine.nvml import Gpu, NvmlError
from tests.support.fake_nvml import A, B, C, FakeNvml, gpu, instance
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
MIG = [gpu(B, mig=True), instance("MIG-1111"), "process 7 77", instance("MIG-1222"), gpu(C)]


# ---- what the library says


@pytest.mark.slow
def test_all_that_the_driver_tells_of_a_gpu(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, total=80 * GIB, free=60 * GIB, used=19 * GIB), "process 4711 1000", "process 4712 -1")
    assert find_gpus() == (
        Gpu(
            index=0,
            uuid=A,
            name="NVIDIA H200",
            memory_total=80 * GIB,
            memory_free=60 * GIB,
            memory_used=19 * GIB,
            memory_by_pid={4711: 1000, 4712: None},
            utilization_percent=35,
            temperature_c=45,
            power_w=120.5,
        ),
    )


def test_what_the_driver_does_not_tell_is_none(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, "GB10", total=-1, busy=-1, temperature=-1, milliwatts=-1))
    assert find_gpus() == (Gpu(index=0, uuid=A, name="GB10"),)


def test_an_older_driver_counts_what_it_reserves_as_used(fake_gpus: FakeNvml) -> None:
    fake_gpus.show("old", gpu(A, total=80 * GIB, free=60 * GIB, used=19 * GIB))
    (found,) = find_gpus()
    assert (found.memory_total, found.memory_free, found.memory_used) == (80 * GIB, 60 * GIB, 20 * GIB)


def test_instances_stand_below_their_gpu_and_have_its_temperature(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), *MIG)
    whole, split, last = find_gpus()
    assert (whole.is_in_mig_mode, split.is_in_mig_mode, last.index) == (False, True, 2)
    assert [(each.uuid, each.index, each.memory_free) for each in split.instances] == [
        ("MIG-1111", 1, 4 * GIB),
        ("MIG-1222", 1, 4 * GIB),
    ]
    assert [(each.utilization_percent, each.temperature_c, each.power_w) for each in split.instances] == [
        (None, 45, 120.5)
    ] * 2


def test_a_gpu_that_is_lost_keeps_its_number(fake_gpus: FakeNvml) -> None:
    fake_gpus.show("lost", gpu(B))
    assert [(each.index, each.uuid) for each in find_gpus()] == [(1, B)]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (["init 9"], "the NVIDIA driver is not loaded"),
        (["init 18"], "restart the machine"),
        (["init 999"], r"does not come up: Unknown Error \(NVML 999\)"),
    ],
)
def test_a_driver_that_does_not_come_up(fake_gpus: FakeNvml, machine: list[str], words: str) -> None:
    fake_gpus.show(*machine, gpu(A))
    assert find_gpus() == ()
    with pytest.raises(NvmlError, match=words):
        look_at_gpus()


@pytest.mark.parametrize("library", ["no-such-library.so", __file__])
def test_without_a_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", library)
    assert find_gpus() == ()
    with pytest.raises(NvmlError, match="there is no NVIDIA driver here"):
        look_at_gpus()


def test_a_library_without_these_functions_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libc.so.6")
    with pytest.raises(NvmlError, match="does not come up"):
        look_at_gpus()


@pytest.mark.slow
def test_a_driver_that_hangs_is_not_waited_for_twice(fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "LOOK_TIMEOUT_S", 0.3)
    fake_gpus.show("sleep 2", gpu(A))
    threads = threading.active_count()
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(NvmlError, match=r"does not answer in 0\.3 s"):
            look_at_gpus()
    assert time.monotonic() - began < 1.5
    assert threading.active_count() == threads + 1
    fake_gpus.show(gpu(A))
    wait_until(lambda: len(find_gpus()) == 1, 5, "the driver to answer again")
    assert threading.active_count() == threads


def test_a_forked_child_asks_anew(fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "LOOK_TIMEOUT_S", 0.2)
    fake_gpus.show(gpu(A))
    assert len(find_gpus()) == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert len(pool.apply(find_gpus)) == 1


# ---- the fake, and our reading of it, against NVIDIA's own binding


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (nvml.Memory, pynvml.c_nvmlMemory_t),
        (nvml.MemoryV2, pynvml.c_nvmlMemory_v2_t),
        (nvml.Utilization, pynvml.c_nvmlUtilization_t),
        (nvml.ProcessV2, pynvml.c_nvmlProcessInfo_v2_t),
    ],
)
def test_layouts_are_those_of_nvidias_own_binding(ours: type[ctypes.Structure], theirs: type[ctypes.Structure]) -> None:
    assert list(ours._fields_) == list(theirs._fields_)
    assert ctypes.sizeof(ours) == ctypes.sizeof(theirs)


def test_codes_are_those_of_nvidias_own_binding() -> None:
    assert ctypes.sizeof(nvml.MemoryV2) | 2 << 24 == pynvml.nvmlMemory_v2
    assert nvml.INSUFFICIENT_SIZE == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert nvml.DRIVER_NOT_LOADED == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert nvml.OTHER_RELEASE == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    assert nvml._GPU_SENSOR == pynvml.NVML_TEMPERATURE_GPU
    assert max(pynvml.NVML_DEVICE_UUID_V2_BUFFER_SIZE, pynvml.NVML_DEVICE_NAME_V2_BUFFER_SIZE) <= nvml.TEXT_BYTES


THEIRS = """
import json, pynvml as n
n.nvmlInit()
found = []
for index in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(index)
    memory, is_split = n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2), n.nvmlDeviceGetMigMode(h)[0] == 1
    found.append([
        n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetName(h), memory.total, memory.free, memory.used,
        {p.pid: p.usedGpuMemory for p in n.nvmlDeviceGetComputeRunningProcesses(h)},
        n.nvmlDeviceGetUtilizationRates(h).gpu, n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
        n.nvmlDeviceGetPowerUsage(h) / 1000, is_split,
        [n.nvmlDeviceGetUUID(n.nvmlDeviceGetMigDeviceHandleByIndex(h, i)) for i in range(2 if is_split else 0)],
    ])
n.nvmlShutdown()
print(json.dumps(found))
"""


def test_nvidias_own_binding_reads_the_same(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), "process 4711 1000", "process 4712 -1", *MIG)
    done = subprocess.run([sys.executable, "-c", THEIRS], stdout=subprocess.PIPE, check=True)
    ours = [
        [
            each.uuid,
            each.name,
            each.memory_total,
            each.memory_free,
            each.memory_used,
            {str(pid): size for pid, size in each.memory_by_pid.items()},
            each.utilization_percent,
            each.temperature_c,
            each.power_w,
            each.is_in_mig_mode,
            [below.uuid for below in each.instances],
        ]
        for each in find_gpus()
    ]
    assert json.loads(done.stdout) == ours


# ---- CUDA's numbers and names


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [A, "MIG-1111", "MIG-1222", C]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [A]),
        (" 2 , 0 ", [C, A]),
        ("0,-1,2", [A]),  # what follows a name that is not one does not count
        ("0,7,2", [A]),
        ("0,,2", [A]),
        ("0,0", []),  # CUDA's answer to a device that is named twice
        (f"0,{A}", []),
        ("2abc", [C]),
        ("1", ["MIG-1111"]),  # of a GPU in MIG mode CUDA takes the first instance
        (B, ["MIG-1111"]),
        (A, [A]),
        (A[:8], [A]),
        (f"{C},{A}", [C, A]),
        ("GPU-", []),  # of several
        ("GPU-0", []),
        ("MIG-1222", ["MIG-1222"]),
        ("MIG-12", ["MIG-1222"]),
        ("MIG-1", []),
        ("MIG-1222,MIG-1111", ["MIG-1222", "MIG-1111"]),
    ],
)
def test_what_cuda_visible_devices_leaves(fake_gpus: FakeNvml, visible: str | None, seen: list[str]) -> None:
    fake_gpus.show(gpu(A), *MIG)
    assert [each.uuid for each in visible_gpus(find_gpus(), visible)] == seen


def test_a_gpu_in_mig_mode_without_instances_is_no_device(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, mig=True), gpu(B))
    assert [each.uuid for each in visible_gpus(find_gpus(), None)] == [B]
    assert visible_gpus(find_gpus(), "0,1") == ()


def test_cuda_counts_the_fastest_first(fake_gpus: FakeNvml) -> None:
    machine_gpu._ranks_by_speed.cache_clear()
    fake_gpus.show(gpu(B, "NVIDIA L4"), gpu(A), gpu(C, "NVIDIA T4"), f"cuda {A}", f"cuda {B}")
    found = find_gpus()
    assert [each.uuid for each in in_cuda_order(found, None)] == [A, B, C]
    assert [each.uuid for each in in_cuda_order(found, "FASTEST_FIRST")] == [A, B, C]
    assert [each.uuid for each in in_cuda_order(found, BY_BUS)] == [B, A, C]
    machine_gpu._ranks_by_speed.cache_clear()


def test_cuda_counts_equal_gpus_as_the_driver_does(fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_gpu, "ask_driver", lambda *_: pytest.fail("there is nothing to ask for"))
    fake_gpus.show(gpu(B), gpu(A))
    assert [each.uuid for each in in_cuda_order(find_gpus(), None)] == [B, A]


# ---- memory


async def test_memory_by_number_and_uuid(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, free=1 * GIB), gpu(B, free=79 * GIB), gpu("GPU-shared", total=-1), *MIG[1:])
    need = MemoryNeed(0.9)
    assert await shortfall(["cuda:1"], need) is None
    assert await shortfall([f"cuda:{B}", f"cuda:{B[:9]}"], need) is None
    assert await shortfall(["cuda:2", "cuda:7", "cuda:GPU-7"], need) is None, "what is not known is vLLM's to find out"
    words = "has 1.00 of 80.00 GiB free, 72.00 are needed"
    assert await shortfall(["cuda:1", "cuda:0"], need) == f"cuda:0 {words}"
    assert await shortfall([f"cuda:{A}"], need) == f"cuda:{A} {words}"
    assert await shortfall(["cuda:0"], MemoryNeed(0.0, GIB)) is None
    assert await shortfall(["cuda:0"], MemoryNeed(0.0, GIB + 1)) is not None


async def test_memory_of_an_instance(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), *MIG)
    words = "has 4.00 of 10.00 GiB free, 9.00 are needed"
    assert await shortfall(["cuda:MIG-1222"], MemoryNeed(0.9)) == f"cuda:MIG-1222 {words}"
    assert await shortfall(["cuda:1"], MemoryNeed(0.9)) == f"cuda:1 {words}"
    assert await shortfall(["cuda:1"], MemoryNeed(0.4)) is None


async def test_the_memory_of_the_machine_counts_for_an_engine_on_the_processor() -> None:
    memory = ram()
    assert memory is not None
    assert 0 < memory.free <= memory.total
    assert await shortfall(["cpu"], MemoryNeed(0.0, 1)) is None
    assert "cpu has" in (await shortfall(["cpu"], MemoryNeed(0.0, 1 << 60)) or "")


def test_memory_of_a_process_is_summed_over_gpus_and_instances(fake_gpus: FakeNvml) -> None:
    many = [f"process {pid} {pid}" for pid in range(100, 160)]  # more than the first guess has room for
    fake_gpus.show(gpu(A), "process 7 1000", "process 8 -1", *many, *MIG)
    found = gpu_memory_by_process()
    assert found.pop(7) == 1077
    assert found == {pid: pid for pid in range(100, 160)}


@pytest.mark.slow
async def test_memory_of_processes_that_have_ended_is_waited_for(fake_gpus: FakeNvml) -> None:
    held = [gpu(A), "process 4711 1000", "process 4712 1000"]
    fake_gpus.show(*held)
    assert await wait_released(["cuda:0"], [1, 2], 5)
    assert not await wait_released(["cuda:0"], [4711], 0.1)
    assert await wait_released(["cpu"], [4711], 0.1)
    waiting = asyncio.create_task(wait_released(["cuda:0"], [4711], 10))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    fake_gpus.show(*held[:1], *held[2:])
    assert await waiting


def test_looking_leaves_no_file_open(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A))
    find_gpus()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        find_gpus()
    assert len(os.listdir("/proc/self/fd")) == before
