"""Which of several GPUs is chosen; the driver is a stand-in."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shared_engine.launch import free_gpus
from shared_engine.launch.free_gpus import on_free_gpus
from shared_engine.machine.gpu import device_named
from shared_engine.machine.memory import GIB
from shared_engine.machine.nvml import Gpu
from shared_engine.runtime.directory import runtime_dir
from shared_engine.runtime.spec import EngineSpec

ONE = EngineSpec(("--model", "m"), "/python", "0.32.0", "m", environment={"A": "1"}, devices=("cuda:0",))
TWO = EngineSpec(("--model", "m"), "/python", "0.32.0", "m", devices=("cuda:0", "cuda:1"))


Gpus = dict[int, Gpu]


def with_free(number: int, free: int, total: int = 80 * GIB) -> Gpu:
    return Gpu(index=number, uuid=f"GPU-{number}", memory_free=free, memory_total=total)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Four, the first of which is taken; and no engines."""
    for number in range(4):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
    found = {number: with_free(number, gib * GIB) for number, gib in enumerate((10, 70, 79, 79))}
    monkeypatch.setattr(free_gpus, "NVIDIA_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(free_gpus, "find_gpus", lambda: tuple(found.values()))
    monkeypatch.setenv("VLLM_LOCAL_RUNTIME_DIR", str(tmp_path / "run"))
    return found


def test_the_one_with_the_most_free_memory(gpus: Gpus) -> None:
    chosen = on_free_gpus(ONE)
    assert chosen.devices == ("cuda:2",)
    assert chosen.environment == {"A": "1", "CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    gpus[2] = with_free(2, 79 * GIB - 1)
    assert on_free_gpus(ONE).devices == ("cuda:3",)


def test_a_few_megabytes_make_no_difference(gpus: Gpus) -> None:
    gpus[2] = with_free(2, 79 * GIB + 5)
    gpus[3] = with_free(3, 79 * GIB + 900)
    assert on_free_gpus(ONE).devices == ("cuda:2",)


def test_a_gpu_in_mig_mode_is_nobodys_choice(gpus: Gpus) -> None:
    gpus[2] = replace(gpus[2], is_in_mig_mode=True)
    assert on_free_gpus(ONE).devices == ("cuda:3",)
    assert on_free_gpus(TWO).devices == ("cuda:1", "cuda:3")


def test_as_many_as_the_model_is_split_over(gpus: Gpus) -> None:
    assert on_free_gpus(TWO).devices == ("cuda:2", "cuda:3")


def test_beside_a_gpu_that_is_lost_they_are_named_by_their_uuids(gpus: Gpus) -> None:
    """CUDA would take number 3 for one that is not there, and ours for the last of three."""
    del gpus[0]
    chosen = on_free_gpus(TWO)
    assert chosen.devices == ("cuda:GPU-2", "cuda:GPU-3")
    assert chosen.environment["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    named = device_named(chosen.devices[1], tuple(gpus.values()))
    assert named is not None
    assert named.index == 3


def test_without_a_choice_nothing_is_chosen(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    four = EngineSpec(("--model", "m"), "/python", "0.32.0", "m", devices=tuple(f"cuda:{n}" for n in range(4)))
    assert on_free_gpus(four) is four
    gpus.clear()
    assert on_free_gpus(ONE) is ONE, "the driver tells nothing"
    monkeypatch.setattr(free_gpus, "NVIDIA_GPUS", Path("/nonexistent"))
    assert on_free_gpus(ONE) is ONE


def test_an_engine_that_is_alive_decides(gpus: Gpus) -> None:
    first = on_free_gpus(ONE)
    directory = runtime_dir(first.key)
    directory.prepare()
    directory.spec.write_text(first.to_json())
    gpus[2] = with_free(2, 1 * GIB)  # it is loaded now
    assert on_free_gpus(ONE).devices == ("cuda:3",), "nobody owns that one"
    lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert on_free_gpus(ONE) == first
    assert on_free_gpus(ONE).key == first.key
    assert on_free_gpus(EngineSpec(("--model", "other"), "/python", "0.32.0", "m", devices=("cuda:0",))).devices == (
        "cuda:3",
    )
    os.close(lock)
