"""The right to start on a device, between real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared_engine.supervisor.start_lock import StartLock
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.timeout(30)
Hold = Callable[..., "subprocess.Popen[str]"]

HOLDER = """
import asyncio, sys
from pathlib import Path
from shared_engine.supervisor.start_lock import StartLock
async def main():
    async with StartLock(Path(sys.argv[1]), sys.argv[3:], sys.argv[2], lambda _: None):
        print("mine", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Another process that may start on devices, until its stdin is closed."""
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


async def holder_of(root: Path, *devices: str) -> str | None:
    """None if it is free; else who has it."""

    def waiting(who: str) -> None:
        raise TakenError(who)

    try:
        async with StartLock(root, devices, "me", waiting):
            return None
    except TakenError as exc:
        return str(exc)


@pytest.mark.slow
async def test_one_start_excludes_others_and_names_itself(tmp_path: Path, hold: Hold) -> None:
    holder = hold("Qwen3-4B", "cuda:0", "cuda:1")
    assert await holder_of(tmp_path, "cuda:1") == "Qwen3-4B"
    assert await holder_of(tmp_path, "cuda:2", "cuda:0") == "Qwen3-4B"
    assert await holder_of(tmp_path, "cuda:2") is None
    holder.communicate()
    assert await holder_of(tmp_path, "cuda:0", "cuda:1") is None


@pytest.mark.slow
async def test_a_killed_process_loses_the_lock(tmp_path: Path, hold: Hold) -> None:
    holder = hold("a", "cpu")
    assert await holder_of(tmp_path, "cpu") == "a"
    holder.kill()
    async with asyncio.timeout(5), StartLock(tmp_path, ["cpu"], "me", lambda _: None):
        pass


@pytest.mark.slow
async def test_a_shorter_name_replaces_a_longer_one(tmp_path: Path, hold: Hold) -> None:
    hold("a-very-long-name", "cpu").communicate()
    hold("b", "cpu")
    assert await holder_of(tmp_path, "cpu") == "b"


@pytest.mark.slow
async def test_who_waits_for_several_devices_holds_none_of_them(tmp_path: Path, hold: Hold) -> None:
    holder = hold("a", "cuda:1")
    told = asyncio.Event()
    got = asyncio.Event()

    async def wait() -> None:
        async with StartLock(tmp_path, ["cuda:0", "cuda:1"], "b", lambda _: told.set()):
            got.set()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(wait())
        for _ in range(5):
            await told.wait()
            assert await holder_of(tmp_path, "cuda:0") is None
            told.clear()
        assert not got.is_set()
        holder.communicate()
        await got.wait()


async def test_starts_on_overlapping_devices_all_come(tmp_path: Path) -> None:
    now: set[str] = set()

    async def start(*devices: str) -> None:
        async with StartLock(tmp_path, devices, "x", lambda _: None):
            assert not now & set(devices)
            now.update(devices)
            await asyncio.sleep(0.02)
            now.difference_update(devices)

    async with asyncio.timeout(15):
        await asyncio.gather(start("a", "b"), start("b", "c"), start("c", "a"), start("b"), start("c", "b", "a"))


async def test_a_device_s_name_may_hold_slashes(tmp_path: Path) -> None:
    async with StartLock(tmp_path, ["cuda:MIG-GPU-1234/1/0"], "x", lambda _: None):
        assert [path.name for path in tmp_path.iterdir()] == ["cuda-MIG-GPU-1234-1-0.start"]
