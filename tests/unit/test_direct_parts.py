"""Parts of direct mode that need no vLLM: folders that a killed app left, hangs, what is replaced in vLLM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import types
from concurrent.futures import Future
from pathlib import Path

import pytest

from shared_engine import EngineSettings
from shared_engine.direct.folder import DirectFolder
from shared_engine.direct.host import _birth
from shared_engine.direct.watch import StepWatch
from shared_engine.launcher.cores import BIND_VARIABLE
from shared_engine.launcher.replacing import replace_everywhere
from shared_engine.request import direct
from shared_engine.request.direct import DirectEndpoint
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.runtime.record import EngineState
from tests.support.paths import REPOSITORY

MAKE_AND_DIE = """
import os, signal
from shared_engine.direct.folder import DirectFolder
folder = DirectFolder()
folder.log.write_text("one\\ntwo\\n")
print(folder.directory.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "r"))
    return tmp_path / "r"


def test_what_a_killed_app_left_goes_with_the_next_start(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAKE_AND_DIE], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    left = Path(done.stdout.strip())
    assert left.is_relative_to(root)
    assert left.is_dir()
    mine = DirectFolder()
    assert not left.exists()
    another = DirectFolder()
    assert mine.directory.path.is_dir(), "what is in use stays"
    for folder in (mine, another):
        folder.remove()
        assert not folder.directory.path.exists()


def test_the_log_of_a_start_is_its_own(root: Path) -> None:
    folder = DirectFolder()
    assert (folder.lines(), folder.tail(), folder.read(0)) == ([], (), b"")
    folder.begin_start()
    folder.log.write_text("one\n\ntwo\n")
    assert (folder.lines(), folder.read(5)) == (["one", "two"], b"two\n")
    folder.begin_start()
    assert folder.lines() == []
    folder.remove()


class Steps:
    """vLLM's metrics: steps so far, and requests; and whether EngineCore answers."""

    def __init__(self, running: int) -> None:
        self.steps = 0
        self.running = running
        self.answers = True
        self.asked = 0

    def metrics(self) -> str:
        return (
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self.steps}\n'
            f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
        )

    async def answered(self) -> None:
        self.asked += 1
        if not self.answers:
            await asyncio.sleep(60)


async def is_seen_to_hang(steps: Steps, *, moves: bool = False, has_requests: bool = True) -> bool:
    watch = StepWatch(steps.metrics, 0.2)
    for _ in range(40):
        if await watch.is_hung(steps.answered, has_requests=has_requests):
            return True
        steps.steps += moves
        await asyncio.sleep(watch.poll_s / 2)
    return False


@pytest.mark.slow
async def test_requests_that_run_without_a_step_are_a_hang() -> None:
    assert await is_seen_to_hang(Steps(running=1))


@pytest.mark.slow
async def test_steps_and_rest_are_none() -> None:
    assert not await is_seen_to_hang(Steps(running=1), moves=True)
    assert not await is_seen_to_hang(Steps(running=1), has_requests=False)


@pytest.mark.slow
async def test_a_request_that_never_reached_an_engine_that_answers_is_none() -> None:
    steps = Steps(running=0)
    assert not await is_seen_to_hang(steps)
    assert steps.asked


@pytest.mark.slow
async def test_a_request_that_never_reached_an_engine_that_is_stopped_is_one() -> None:
    steps = Steps(running=0)
    steps.answers = False
    assert await is_seen_to_hang(steps)


def test_a_function_is_replaced_wherever_it_was_imported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def old() -> None: ...
    def new() -> None: ...

    modules = {name: types.ModuleType(name) for name in ("vllm.a", "vllm.b.c", "vllmish")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        module.__dict__.update(pick=old, other=old, kept=print)
    replace_everywhere(old, new)
    assert [modules[name].__dict__["other"] for name in modules] == [new, new, old]
    assert modules["vllm.a"].__dict__["kept"] is print


@pytest.mark.slow
async def test_ending_an_engine_by_force_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Stands for an engine whose processes take a while to be gone."""

        def kill(self) -> Future[None]:
            time.sleep(0.5)
            ended: Future[None] = Future()
            ended.set_result(None)
            return ended

    async def resolved(_: DirectEndpoint) -> None:
        pass

    monkeypatch.setattr(direct, "direct_engine", lambda _: Slow())
    monkeypatch.setattr(DirectEndpoint, "_resolved", resolved)
    ending = asyncio.ensure_future(DirectEndpoint(EngineSettings(model="m", mode="direct")).shutdown(5, force=True))
    turns = 0
    while not ending.done():
        await asyncio.sleep(0.01)
        turns += 1
    ending.result()
    assert turns > 10


def test_it_is_up_when_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a count of tokens would start it."""
    endpoint, engine = DirectEndpoint(EngineSettings(model="m", mode="direct")), types.SimpleNamespace()
    assert not endpoint.is_up()
    monkeypatch.setattr(direct, "direct_engine", lambda _: engine)
    monkeypatch.setattr(endpoint, "_spec", object())
    for engine.state in EngineState:
        assert endpoint.is_up() == (engine.state is EngineState.READY)


def test_a_child_has_no_variable_of_ours_but_those_that_vllm_reads(root: Path) -> None:
    folder = DirectFolder()
    unset = _birth(folder).unset
    assert {"VLLM_API_KEY", "VLLM_MODEL_PATH", "VLLM_SERVE_TCP"} <= set(unset)
    assert BIND_VARIABLE not in unset, "the cores of its workers"
    folder.remove()
