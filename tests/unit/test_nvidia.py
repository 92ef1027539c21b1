"""What the driver's files and libraries say, each faked: files in a folder, libraries as objects."""

from __future__ import annotations

import os
import sys
from ctypes import c_char
from pathlib import Path
from typing import Any

import pytest

from shared_engine.machine.nvidia import Driver, ask_driver, driver_release, looks_usable
from shared_engine.machine.nvidia_probe import look
from tests.support.interpreters import make_interpreter

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder@host)\n"


def machine(root: Path, gpus: int, version: str = OPEN) -> Path:
    """The files of a machine with a driver."""
    driver = root / "proc" / "driver" / "nvidia"
    for number in range(gpus):
        gpu = driver / "gpus" / f"0000:0{number}:00.0"
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(f"Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-{number}aaa-bbb\n")
        (root / "dev").mkdir(exist_ok=True)
        (root / "dev" / f"nvidia{number}").touch()
    driver.mkdir(parents=True, exist_ok=True)
    (driver / "version").write_text(version)
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / "nvidiactl").touch()
    return root


@pytest.mark.parametrize(("text", "release"), [(CLOSED, "535.129.03"), (OPEN, "580.65.06"), ("", "")])
def test_the_release_of_the_driver_in_the_kernel(tmp_path: Path, text: str, release: str) -> None:
    assert driver_release(machine(tmp_path, 1, text)) == release


def test_without_a_driver_there_is_no_release(tmp_path: Path) -> None:
    assert driver_release(tmp_path) == ""


@pytest.mark.parametrize(
    ("visible", "needed", "cuda", "is_usable"),
    [
        (None, 1, 13, True),
        (None, 2, 13, True),
        (None, 3, 13, False),
        (None, 1, None, True),
        (None, 1, 14, True),  # a CUDA whose oldest driver is not known: vLLM will tell
        ("0", 1, 13, True),
        ("1, 0", 2, 13, True),
        ("2", 1, 13, False),
        ("0,1", 3, 13, False),
        ("", 1, 13, False),
        ("-1", 1, 13, False),
        ("GPU-1aaa", 1, 13, True),
        ("GPU-1aaa-bbb,GPU-0aaa-bbb", 2, 13, True),
        ("GPU-7", 1, 13, False),
        ("NoDevFiles", 1, 13, False),
        ("MIG-12345678", 1, 13, True),
    ],
)
def test_files_leave_no_doubt_or_some(
    tmp_path: Path, visible: str | None, needed: int, cuda: int | None, is_usable: bool
) -> None:
    assert looks_usable(visible, needed, cuda, machine(tmp_path, 2)) is is_usable


@pytest.mark.parametrize(("cuda", "is_usable"), [(12, True), (13, False)])
def test_an_old_driver_leaves_doubt(tmp_path: Path, cuda: int, is_usable: bool) -> None:
    assert looks_usable(None, 1, cuda, machine(tmp_path, 1, CLOSED)) is is_usable


def test_without_device_files_there_is_doubt(tmp_path: Path) -> None:
    assert not looks_usable(None, 1, 13, tmp_path)
    assert not looks_usable(None, 1, 13, machine(tmp_path, 0)), "as in a container without its GPUs"


def test_a_device_file_that_is_closed_to_this_user_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = machine(tmp_path, 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not looks_usable(None, 1, 13, root)


@pytest.mark.parametrize("path", ["usr/lib/wsl/lib/libcuda.so.1", "etc/nv_tegra_release"])
def test_gpus_of_windows_and_of_jetson_have_no_such_files(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert looks_usable("0", 1, 13, tmp_path)


# ---- the libraries


class Nvml:
    """NVML with two GPUs, the second in MIG mode."""

    init = 0

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, length: Any) -> int:
        assert length.value == len(name)
        assert type(name)._type_ is c_char
        name.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetMigMode(self, device: Any, now: Any, next_time: Any) -> int:
        now._obj.value = int(device.value == 2)
        return 0

    def nvmlShutdown(self) -> int:
        return 0


class Cuda:
    init = 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuInit(self, flags: Any) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, number: Any) -> int:
        device._obj.value = number.value
        return 0

    def cuDeviceGetUuid(self, uuid: Any, device: Any) -> int:
        uuid[:] = bytes(range(device.value, device.value + 16))
        return int(device.value)  # that of the second is refused


def seen(**libraries: Any) -> Driver:
    """With these libraries, by the first letters of their names."""

    def load(name: str) -> Any:
        found = [library for start, library in libraries.items() if name.startswith(f"lib{start}")]
        if not found:
            raise OSError(f"{name}: cannot open shared object file")
        return found[0]

    return Driver.from_json(look(load))


def test_the_libraries_tell_gpus_mig_mode_and_cuda() -> None:
    wanted = Driver(
        nvml_code=0,
        gpus=("NVIDIA H200",) * 2,
        in_mig_mode=1,
        cuda_code=0,
        cuda=(12, 8),
        usable=2,
        uuids=("GPU-00010203-0405-0607-0809-0a0b0c0d0e0f", ""),
    )
    assert seen(nvidia=Nvml(), cuda=Cuda()) == wanted


def test_libraries_that_do_not_come_up_tell_their_codes() -> None:
    nvml, cuda = Nvml(), Cuda()
    nvml.init, cuda.init = 18, 803
    assert seen(nvidia=nvml, cuda=cuda) == Driver(nvml_code=18, cuda_code=803, cuda=(12, 8))


def test_libraries_that_are_not_there_tell_nothing() -> None:
    assert seen() == Driver()
    assert seen(cuda=Cuda()).usable == 2


def test_the_driver_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    answer = ask_driver(sys.executable, os.environ)
    assert answer is not None
    assert (answer.usable > 0) == (answer.cuda_code == 0)
    assert ask_driver(make_interpreter(tmp_path / "env", None), os.environ) is None, "a Python that fails"
    assert ask_driver(str(tmp_path / "python"), os.environ) is None, "a Python that is not there"
