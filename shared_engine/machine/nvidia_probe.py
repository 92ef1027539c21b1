"""Prints what the NVIDIA driver shows to a process, as JSON: the fields of ``nvidia.Driver``, but for ``release``.

Run by path, in an engine's Python and environment, so that it sees what the engine would see. A process of its own:
CUDA, once initialised, stays so until its process ends, and no app should have that from us. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import sys
import uuid
from collections.abc import Callable
from typing import Any

NAME_BYTES = 96
UUID_BYTES = 16
Load = Callable[[str], Any]


def look(load: Load = ctypes.CDLL) -> dict[str, Any]:
    """What both libraries of the driver say; a field is missing where one is not there.

    Args:
        load: opens a shared library, or raises OSError.
    """
    found: dict[str, Any] = {}
    for name, ask in (("libnvidia-ml.so.1", _ask_nvml), ("libcuda.so.1", _ask_cuda)):  # NVML makes the device files
        try:
            library = load(name)
        except OSError:
            continue
        found |= ask(library)
    return found


def _ask_nvml(nvml: Any) -> dict[str, Any]:
    code = nvml.nvmlInit_v2()
    if code != 0:
        return {"nvml_code": code}
    names, in_mig_mode, count = [], 0, ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        device, name = ctypes.c_void_p(), ctypes.create_string_buffer(NAME_BYTES)
        now, next_time = ctypes.c_uint(), ctypes.c_uint()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) == 0:
            nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(NAME_BYTES))
            nvml.nvmlDeviceGetMigMode(device, ctypes.byref(now), ctypes.byref(next_time))
        names.append(name.value.decode(errors="replace"))
        in_mig_mode += now.value == 1
    nvml.nvmlShutdown()
    return {"nvml_code": 0, "gpus": names, "in_mig_mode": in_mig_mode}


def _ask_cuda(cuda: Any) -> dict[str, Any]:
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    code = cuda.cuInit(ctypes.c_uint(0))
    if code == 0:
        cuda.cuDeviceGetCount(ctypes.byref(count))
    uuids = [_cuda_uuid(cuda, number) for number in range(count.value)]
    newest = [version.value // 1000, version.value % 1000 // 10] if version.value else None
    return {"cuda_code": code, "cuda": newest, "usable": count.value, "uuids": uuids}


def _cuda_uuid(cuda: Any, number: int) -> str:
    """Of a device, or of the GPU that it is an instance of."""
    device, found = ctypes.c_int(), (ctypes.c_ubyte * UUID_BYTES)()
    if cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(number)) != 0:
        return ""
    return f"GPU-{uuid.UUID(bytes=bytes(found))}" if cuda.cuDeviceGetUuid(found, device) == 0 else ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look()))
