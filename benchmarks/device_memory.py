"""The memory in use on the first GPU, by the driver's own library; RAM where there is none. Standard library only."""

from __future__ import annotations

import ctypes
from functools import cache

from shared_engine.machine.gpu import nvidia_smi
from shared_engine.machine.memory import read_memory

MIB = 1 << 20


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """The driver's library, of which three functions are used.

    Raises:
        OSError: it is not there, or tells of no GPU.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", 0, ctypes.byref(self._device))

    def memory(self) -> tuple[int, int]:
        """Bytes in use and in all."""
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(memory))
        return memory.used, memory.total

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise OSError(f"{name}: NVML error {code}")


@cache
def nvml() -> Nvml | None:
    try:
        return Nvml()
    except (OSError, AttributeError):
        return None


def gpu_name() -> str | None:
    """Name and driver of the first GPU; None where there is none."""
    rows = nvidia_smi("--query-gpu=name,driver_version")
    if rows:
        return f"{rows[0][0]}, driver {rows[0][1]}"
    return "an NVIDIA GPU (nvidia-smi tells nothing)" if nvml() is not None else None


def used_mib(is_cpu: bool) -> int:
    """In use by whomever, on the GPU; with ``is_cpu`` of the machine's RAM."""
    return memory(is_cpu)[0] // MIB


def memory(is_cpu: bool) -> tuple[int, int]:
    """Bytes in use and in all."""
    library = None if is_cpu else nvml()
    if library is not None:
        return library.memory()
    of = read_memory()["cpu" if is_cpu else "cuda:0"]
    return of.total - of.free, of.total


def how_read() -> str:
    return "NVML" if nvml() is not None else "nvidia-smi"
