"""Turns on devices, between real processes; and their memory, as a stand-in of nvidia-smi tells it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared_engine.machine.gpu import GIB, DeviceTurn, Memory, MemoryNeed, read_memory, shortfall, wait_released
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.timeout(30)
Hold = Callable[..., "subprocess.Popen[str]"]
Smi = Callable[[str], None]

HOLDER = """
import asyncio, sys
from pathlib import Path
from shared_engine.machine.gpu import DeviceTurn
async def main():
    async with DeviceTurn(Path(sys.argv[1]), sys.argv[3:], sys.argv[2], lambda _: None):
        print("mine", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Another process that has its turn on devices, until its stdin is closed."""
    made: list[subprocess.Popen[str]] = []

    def start(who: str, *devices: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", HOLDER, str(tmp_path), who, *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        made.append(process)
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


class TakenError(Exception):
    """By whom."""


async def has_turn(root: Path, *devices: str) -> str | None:
    """None if it is free; else who has it."""

    def waiting(who: str) -> None:
        raise TakenError(who)

    try:
        async with DeviceTurn(root, devices, "me", waiting):
            return None
    except TakenError as exc:
        return str(exc)


async def test_a_turn_excludes_other_processes_and_names_who_has_it(tmp_path: Path, hold: Hold) -> None:
    holder = hold("Qwen3-4B", "cuda:0", "cuda:1")
    assert await has_turn(tmp_path, "cuda:1") == "Qwen3-4B"
    assert await has_turn(tmp_path, "cuda:2", "cuda:0") == "Qwen3-4B"
    assert await has_turn(tmp_path, "cuda:2") is None
    holder.communicate()
    assert await has_turn(tmp_path, "cuda:0", "cuda:1") is None


async def test_a_killed_process_loses_its_turn(tmp_path: Path, hold: Hold) -> None:
    holder = hold("a", "cpu")
    assert await has_turn(tmp_path, "cpu") == "a"
    holder.kill()
    async with asyncio.timeout(5), DeviceTurn(tmp_path, ["cpu"], "me", lambda _: None):
        pass


async def test_a_shorter_name_replaces_a_longer_one(tmp_path: Path, hold: Hold) -> None:
    hold("a-very-long-name", "cpu").communicate()
    hold("b", "cpu")
    assert await has_turn(tmp_path, "cpu") == "b"


async def test_who_waits_for_several_devices_holds_none_of_them(tmp_path: Path, hold: Hold) -> None:
    holder = hold("a", "cuda:1")
    told = asyncio.Event()
    got = asyncio.Event()

    async def wait() -> None:
        async with DeviceTurn(tmp_path, ["cuda:0", "cuda:1"], "b", lambda _: told.set()):
            got.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(wait())
        for _ in range(5):
            await told.wait()
            assert await has_turn(tmp_path, "cuda:0") is None
            told.clear()
        assert not got.is_set()
        holder.communicate()
        await got.wait()


async def test_turns_on_overlapping_devices_all_come(tmp_path: Path) -> None:
    now: set[str] = set()

    async def start(*devices: str) -> None:
        async with DeviceTurn(tmp_path, devices, "x", lambda _: None):
            assert not now & set(devices)
            now.update(devices)
            await asyncio.sleep(0.02)
            now.difference_update(devices)

    async with asyncio.timeout(15):
        await asyncio.gather(start("a", "b"), start("b", "c"), start("c", "a"), start("b"), start("c", "b", "a"))


# ---- memory


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
