"""NVML, the NVIDIA driver's own library for looking at GPUs: what it says of each, read by ctypes.

Not by the package nvidia-ml-py, which is ctypes on the same library: a supervisor runs without the app's packages, and
what the driver brings along is there wherever a GPU is. The layouts below are compared with its own in the tests.
Each look brings the library up and down again, so that no device file stays open in an app, or passes to its children.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
TEXT_BYTES = 96
MAX_PROCESSES = 1 << 16
SUCCESS, INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, OTHER_RELEASE = 0, 7, 9, 18
_WORDS = {
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    OTHER_RELEASE: "the NVIDIA driver was updated, and the kernel still runs the one before: restart the machine",
}
_GPU_SENSOR = 0
_NOT_AVAILABLE = (1 << 64) - 1


class NvmlError(Exception):
    """NVML can't be asked; the message says why, for people."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one instance (MIG) of a GPU, at one moment. None is what the driver does not tell of it.

    Attributes:
        index: as ``nvidia-smi`` counts, by the bus; an instance has that of its GPU.
        memory_total, memory_free, memory_used: bytes. Used is what processes have; the driver reserves some beside.
        memory_by_pid: bytes of each process that computes; None where they are not told.
        utilization_percent: share of the last moments in which it computed; never told of an instance.
        temperature_c, power_w: of the GPU, also where this is an instance.
        compute_capability: as CUDA counts what its GPUs can do, such as ``(9, 0)``; of the GPU, also for an instance.
        is_in_mig_mode: it is split: only its instances can be used.
    """

    index: int
    uuid: str
    name: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    memory_used: int | None = None
    memory_by_pid: dict[int, int | None] = field(default_factory=dict)
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    compute_capability: tuple[int, int] | None = None
    is_in_mig_mode: bool = False
    instances: tuple[Gpu, ...] = ()


class Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class MemoryV2(ctypes.Structure):
    """nvmlMemory_v2_t, which does not count as used what the driver reserves."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Utilization(ctypes.Structure):
    """nvmlUtilization_t"""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class ProcessV2(ctypes.Structure):
    """nvmlProcessInfo_v2_t. Its function has kept this layout; that of version 3 had another in drivers 535."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("usedGpuMemory", ctypes.c_ulonglong),
        ("gpuInstanceId", ctypes.c_uint),
        ("computeInstanceId", ctypes.c_uint),
    )


def ask_nvml() -> tuple[Gpu, ...]:
    """All GPUs that the driver shows to this process, whatever CUDA_VISIBLE_DEVICES says. May block with the driver.

    Raises:
        NvmlError: there is no driver, or it does not come up.
    """
    with _initialized() as nvml:
        count = ctypes.c_uint()
        nvml.fill("nvmlDeviceGetCount_v2", ctypes.byref(count))
        handles = (nvml.handle("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index)) for index in range(count.value))
        # One that is lost, or closed to this process, keeps its number.
        return tuple(_gpu(nvml, handle, index) for index, handle in enumerate(handles) if handle is not None)


@contextmanager
def _initialized() -> Iterator[_Nvml]:
    try:
        nvml = _Nvml(ctypes.CDLL(LIBRARY))
    except OSError:
        raise NvmlError(f"there is no NVIDIA driver here ({LIBRARY} can't be loaded)") from None
    code = nvml.code("nvmlInit_v2")
    if code != SUCCESS:
        raise NvmlError(
            _WORDS.get(code or SUCCESS) or f"the NVIDIA driver does not come up: {nvml.words(code)} (NVML {code})"
        )
    try:
        yield nvml
    finally:
        nvml.code("nvmlShutdown")


class _Nvml:
    """The library's functions, by name. One that this driver's release does not have fails as those that refuse do."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def code(self, name: str, *arguments: object) -> int | None:
        """What the function returned; None where there is no such function."""
        function = getattr(self._library, name, None)
        return None if function is None else int(function(*arguments))

    def fill(self, name: str, *arguments: object) -> bool:
        """Whether it succeeded, and has filled what it was given to fill."""
        return self.code(name, *arguments) == SUCCESS

    def handle(self, name: str, *arguments: object) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        return handle if self.fill(name, *arguments, ctypes.byref(handle)) else None

    def number(self, name: str, *arguments: object) -> int | None:
        value = ctypes.c_uint()
        return value.value if self.fill(name, *arguments, ctypes.byref(value)) else None

    def text(self, name: str, handle: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        filled = self.fill(name, handle, buffer, ctypes.c_uint(TEXT_BYTES))
        return buffer.value.decode(errors="replace") if filled else ""

    def words(self, code: int | None) -> str:
        function = getattr(self._library, "nvmlErrorString", None)
        if function is None or code is None:
            return "unknown error"
        function.restype = ctypes.c_char_p
        return (function(ctypes.c_int(code)) or b"unknown error").decode(errors="replace")


def _gpu(nvml: _Nvml, handle: ctypes.c_void_p, index: int) -> Gpu:
    gpu = _device(nvml, handle, index)
    now, next_time = ctypes.c_uint(), ctypes.c_uint()
    if not nvml.fill("nvmlDeviceGetMigMode", handle, ctypes.byref(now), ctypes.byref(next_time)) or now.value != 1:
        return gpu
    instances = (
        nvml.handle("nvmlDeviceGetMigDeviceHandleByIndex", handle, ctypes.c_uint(number))
        for number in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    )
    described = (_device(nvml, each, index) for each in instances if each is not None)
    shared = tuple(
        replace(
            each,
            temperature_c=gpu.temperature_c,
            power_w=gpu.power_w,
            compute_capability=gpu.compute_capability,
        )
        for each in described
    )
    return replace(gpu, is_in_mig_mode=True, instances=shared)


def _device(nvml: _Nvml, handle: ctypes.c_void_p, index: int) -> Gpu:
    total, free, used = _memory(nvml, handle)
    busy = Utilization()
    milliwatts = nvml.number("nvmlDeviceGetPowerUsage", handle)
    return Gpu(
        index=index,
        uuid=nvml.text("nvmlDeviceGetUUID", handle),
        name=nvml.text("nvmlDeviceGetName", handle),
        memory_total=total,
        memory_free=free,
        memory_used=used,
        memory_by_pid=_processes(nvml, handle),
        utilization_percent=busy.gpu
        if nvml.fill("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(busy))
        else None,
        temperature_c=nvml.number("nvmlDeviceGetTemperature", handle, ctypes.c_uint(_GPU_SENSOR)),
        power_w=None if milliwatts is None else milliwatts / 1000,
        compute_capability=_capability(nvml, handle),
    )


def _capability(nvml: _Nvml, handle: ctypes.c_void_p) -> tuple[int, int] | None:
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = "nvmlDeviceGetCudaComputeCapability"
    return (major.value, minor.value) if nvml.fill(name, handle, ctypes.byref(major), ctypes.byref(minor)) else None


def _memory(nvml: _Nvml, handle: ctypes.c_void_p) -> tuple[int | None, int | None, int | None]:
    """Total, free and used; nothing of a GPU that shares the machine's memory."""
    second = MemoryV2(version=ctypes.sizeof(MemoryV2) | 2 << 24)
    if nvml.fill("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(second)):
        return second.total, second.free, second.used
    first = Memory()
    if nvml.fill("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(first)):
        return first.total, first.free, first.used
    return None, None, None


def _processes(nvml: _Nvml, handle: ctypes.c_void_p) -> dict[int, int | None]:
    room = 0
    while True:
        count, found = ctypes.c_uint(room), (ProcessV2 * room)()
        code = nvml.code(
            "nvmlDeviceGetComputeRunningProcesses_v2", handle, ctypes.byref(count), found if room else None
        )
        if code == INSUFFICIENT_SIZE and room < count.value <= MAX_PROCESSES:
            room = 2 * count.value + 5  # some may come meanwhile
            continue
        if code != SUCCESS:
            return {}
        sizes = {each.pid: each.usedGpuMemory for each in found[: count.value]}
        return {pid: None if size == _NOT_AVAILABLE else size for pid, size in sizes.items()}
