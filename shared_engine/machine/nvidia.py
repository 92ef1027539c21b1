"""The NVIDIA driver: a look at a few files, and, where that leaves doubt, the words of its own libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("nvidia_probe.py")
PROBE_TIMEOUT_S = 20.0
# The oldest driver for each major version of CUDA: within one, a newer minor version runs on it too (NVIDIA's
# "CUDA compatibility").
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# GPUs that have no /dev/nvidia0: of Windows in WSL2, and Jetson's.
OTHER_GPUS = ("usr/lib/wsl/lib/libcuda.so.1", "etc/nv_tegra_release", "sys/class/tegra-firmware")
# Of AMD, Intel's Gaudi, and Huawei.
OTHER_MAKERS = ("dev/kfd", "dev/accel", "dev/davinci_manager")
# What the driver's libraries answer when they come up. OTHER_RELEASE: than the part in the kernel; NVML's and CUDA's.
SUCCESS, NO_DEVICE, OTHER_RELEASE = 0, 100, (18, 803)


@dataclass(frozen=True)
class Driver:
    """What the NVIDIA driver showed to a process.

    Attributes:
        release: of its part in the kernel, such as ``580.65.06``; empty where there is none. A container has the
            kernel's, even where it has no GPU.
        nvml_code: how its library for looking (NVML) came up, 0 for well; None where there is no such library.
        gpus: the names of the GPUs there are, whatever CUDA_VISIBLE_DEVICES says.
        in_mig_mode: how many of them are split into instances, or are to be.
        cuda_code: how its library for computing came up, 0 for well; None where there is no such library.
        cuda: the newest CUDA that it runs, such as ``(13, 0)``; None if that is not known.
        usable: how many devices CUDA may use, under CUDA_VISIBLE_DEVICES.
        uuids: of the GPUs of these devices, in CUDA's order.
    """

    release: str = ""
    nvml_code: int | None = None
    gpus: tuple[str, ...] = ()
    in_mig_mode: int = 0
    cuda_code: int | None = None
    cuda: tuple[int, int] | None = None
    usable: int = 0
    uuids: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Driver:
        cuda = data.get("cuda")
        lists = {name: tuple(data.get(name, ())) for name in ("gpus", "uuids")}
        return cls(**{**data, **lists, "cuda": None if cuda is None else tuple(cuda)})


def ask_driver(python: str, environment: Mapping[str, str]) -> Driver | None:
    """Ask the driver's libraries, in a process with this Python and environment. None if that process fails.

    Takes 50 ms without a driver, and as long as CUDA takes to come up with one.
    """
    try:
        done = subprocess.run(
            [python, "-I", "-S", str(PROBE)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
        return replace(Driver.from_json(json.loads(done.stdout)), release=driver_release())
    except (
        OSError,
        ValueError,
        TypeError,
        subprocess.SubprocessError,
        RuntimeError,
    ):  # it may start no process any more
        return None


def gpus_by_files(root: Path = Path("/")) -> int | None:
    """How many GPUs the driver's files show to this process; None where they don't tell of all."""
    if any((root / path).exists() for path in (*OTHER_GPUS, *OTHER_MAKERS)):
        return None
    return len(list(root.glob("dev/nvidia[0-9]*")))


def looks_usable(visible: str | None, needed: int, cuda_major: int | None, root: Path = Path("/")) -> bool:
    """Whether the files of the driver leave no doubt that so many GPUs can be used. Takes no process, and opens no GPU.

    Args:
        visible: CUDA_VISIBLE_DEVICES, None where it is not set.
        cuda_major: the version of CUDA that they are to be used with, None if that is not known.
        root: where the file system begins.
    """
    if any((root / path).exists() for path in OTHER_GPUS):
        return True
    files = [path for path in root.glob("dev/nvidia[0-9]*") if os.access(path, os.R_OK | os.W_OK)]
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    if names is not None and not all(_names_a_gpu(name, len(files), root) for name in names):
        return False
    release = driver_release(root).partition(".")[0]
    if release.isdigit() and int(release) < OLDEST_DRIVER.get(cuda_major or 0, 0):
        return False
    return needed <= (len(files) if names is None else len(names)) and bool(files)


def _names_a_gpu(name: str, count: int, root: Path) -> bool:
    if name.isdigit():
        return int(name) < count
    if name.startswith("MIG-"):
        return True  # no file tells of instances
    files = root.glob("proc/driver/nvidia/gpus/*/information")
    return name.startswith("GPU-") and any(re.search(rf"UUID:\s+{re.escape(name)}", _text(file)) for file in files)


def driver_release(root: Path = Path("/")) -> str:
    """Of the driver in the kernel, such as ``580.65.06``; empty where there is none."""
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
