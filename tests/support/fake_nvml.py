"""A machine's GPUs, faked as a library in C: what is read of it passes through the same calls as a driver's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shared_engine.machine import nvml

SOURCE = Path(__file__).with_name("fake_nvml.c")
GIB = 1 << 30
# As they are in life: NVIDIA's, of the form that CUDA has them in.
A, B, C = (f"GPU-{digit * 8}-d72c-4106-c12f-20bd9faed9f6" for digit in "abc")


def gpu(
    uuid: str,
    name: str = "NVIDIA H200",
    *,
    total: int = 80 * GIB,
    free: int = 70 * GIB,
    used: int = 9 * GIB,
    busy: int = 35,
    temperature: int = 45,
    milliwatts: int = 120_500,
    mig: bool = False,
) -> str:
    """A line of the description."""
    return f"gpu {uuid}|{name}|{total}|{free}|{used}|{busy}|{temperature}|{milliwatts}|{int(mig)}"


def instance(uuid: str, *, total: int = 10 * GIB, free: int = 4 * GIB, used: int = 6 * GIB) -> str:
    """Of the GPU in the line before."""
    return f"mig {uuid}|NVIDIA H200 MIG 1g.10gb|{total}|{free}|{used}"


class FakeNvml:
    """The driver's libraries: found by this process, and by those that it starts."""

    def __init__(self, library: Path, description: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library = library
        self._description = description
        monkeypatch.setenv("FAKE_NVML", str(description))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
        monkeypatch.setattr(nvml, "LIBRARY", str(library))
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            monkeypatch.delenv(name, raising=False)
        self.show()

    def show(self, *lines: str) -> None:
        """From now on the machine is as these lines say; see fake_nvml.c."""
        new = self._description.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self._description)


def compiled(folder: Path) -> Path:
    """The library, under the names of both of the driver's."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to make the fake NVML with")
    library = folder / "libnvidia-ml.so.1"
    warnings = ["-Wall", "-Wextra", "-Werror", "-O1"]
    subprocess.run([compiler, "-shared", "-fPIC", *warnings, "-o", str(library), str(SOURCE)], check=True)
    shutil.copy(library, folder / "libcuda.so.1")
    return library
