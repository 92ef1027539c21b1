"""Memory of the machine, and of GPUs as a stand-in of nvidia-smi tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_engine.machine.gpu import wait_released
from shared_engine.machine.memory import GIB, Memory, MemoryNeed, read_memory, shortfall

pytestmark = pytest.mark.timeout(30)
Smi = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Makes a stand-in from a shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")

    def make(script: str) -> None:
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)

    return make


def gpus(*rows: str) -> str:
    return "".join(f"echo '{row}'\n" for row in rows)


async def test_memory_by_number_and_uuid(nvidia_smi: Smi) -> None:
    nvidia_smi(gpus("0, GPU-aaaa, 1024, 81559", "1, GPU-bbbb, 80000, 81559", "2, GPU-cccc, [N/A], [N/A]"))
    memory = read_memory()
    assert memory["cuda:0"] == memory["cuda:GPU-aaaa"] == Memory(1 << 30, 81559 << 20)
    assert memory["cuda:1"] == Memory(80000 << 20, 81559 << 20)
    assert "cuda:2" not in memory
    assert 0 < memory["cpu"].free <= memory["cpu"].total
    need = MemoryNeed(0.9)
    assert await shortfall(["cuda:1"], need) is None
    assert await shortfall(["cuda:2", "cuda:7"], need) is None, "what is not known is vLLM's to find out"
    assert await shortfall(["cuda:1", "cuda:0"], need) == "cuda:0 has 1.00 of 79.65 GiB free, 71.68 are needed"
    assert await shortfall(["cuda:0"], MemoryNeed(0.0, GIB)) is None
    assert await shortfall(["cuda:0"], MemoryNeed(0.0, GIB + 1)) is not None


async def test_the_memory_of_the_machine_counts_for_an_engine_on_the_processor() -> None:
    assert await shortfall(["cpu"], MemoryNeed(0.0, 1)) is None
    assert "cpu has" in (await shortfall(["cpu"], MemoryNeed(0.0, 1 << 60)) or "")


@pytest.mark.parametrize(
    "script",
    ["exit 9", "echo 'NVIDIA-SMI has failed'; exit 9", "printf '0, \\377'", "echo '0, 1, 2'", "kill -9 $$"],
)
def test_a_command_that_fails_tells_nothing(nvidia_smi: Smi, script: str) -> None:
    nvidia_smi(script)
    assert set(read_memory()) == {"cpu"}


def test_no_command_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(read_memory()) == {"cpu"}


def test_a_command_that_hangs_is_not_waited_for(nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared_engine.machine.gpu.NVIDIA_SMI_TIMEOUT_S", 0.2)
    nvidia_smi("exec sleep 20")
    began = time.monotonic()
    assert set(read_memory()) == {"cpu"}
    assert time.monotonic() - began < 5


async def test_memory_of_processes_that_have_ended_is_waited_for(nvidia_smi: Smi, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    nvidia_smi(f"test -e {held} && echo '4711, 1000'; echo '4712, 1000'")
    assert await wait_released(["cuda:0"], [1, 2], 5)
    assert not await wait_released(["cuda:0"], [4711], 0.1)
    assert await wait_released(["cpu"], [4711], 0.1)
    waiting = asyncio.create_task(wait_released(["cuda:0"], [4711], 10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    held.unlink()
    assert await waiting
