"""Commands that start engines, on the fake: pins, interruptions, and what a terminal shows."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any

import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, hello
from tests.support.command import COMMAND, given_to, options_of, seed_of, told, vllm_local
from tests.support.paths import REPOSITORY
from tests.support.screens import frames_of, shown_by
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


def loading(engine: Engine, *more: str) -> tuple[list[str], dict[str, str]]:
    """The words and variables that load this engine."""
    settings = given_to(engine)
    return ["load", *options_of(settings), *more], seed_of(settings)


def line_of(engine: Engine) -> str:
    """Its line of ``vllm-local ps``."""
    _, line = vllm_local("ps", engine.status().key or "").stdout.splitlines()
    return line


def test_what_is_loaded_is_the_engine_of_apps_with_equal_settings(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=50)
    words, variables = loading(engine)
    done = vllm_local(*words, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    key = engine.status().key or ""
    assert done.stdout.startswith(f"{engine.status().name} ({key[:8]}) is ready after ")
    assert done.stdout.endswith("; it leaves 50s after its last use\n")
    assert hello(engine) == ANSWER
    assert engine.status().starts == 1
    assert " idle  in 4" in line_of(engine)


def test_a_pin_holds_after_the_command_has_ended_and_until_the_model_is_unloaded(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=0.5)
    words, variables = loading(engine, "--pin", "--json")
    loaded = told(vllm_local(*words, **variables))
    assert (loaded["state"], loaded["pinned"], loaded["idle_ttl_s"], loaded["leaves_at"]) == ("ready", True, None, None)
    assert hello(engine) == ANSWER
    assert line_of(engine).endswith("idle  unloaded by hand (pinned)")
    wait_until(lambda: (engine.status().idle_for_s or 0) > 2 * 0.5, 10, "it to be idle for longer than it would stay")
    assert engine.status().state is EngineState.READY
    assert vllm_local("unload", loaded["key"]).returncode == 0
    assert hello(engine) == ANSWER
    assert not engine.status().pinned, "the next start is as its callers want it"


def test_a_model_that_is_loaded_can_be_pinned(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=50)
    assert hello(engine) == ANSWER
    assert not engine.status().pinned
    words, variables = loading(engine, "--pin")
    assert vllm_local(*words, **variables).stdout.endswith("; it stays until it is unloaded\n")
    assert (engine.status().pinned, engine.status().starts) == (True, 1)


def test_an_interrupted_load_leaves_its_start_alone(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 2})
    words, variables = loading(engine)
    command = subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
    )
    wait_until(lambda: engine.status().state is EngineState.STARTING, 20, "the start")
    command.send_signal(signal.SIGINT)
    shown, errors = command.communicate(timeout=20)
    assert (command.returncode, shown, errors) == (
        130,
        "",
        "vllm-local: interrupted; a start that has begun goes on\n",
    )
    wait_until(engine.is_ready, 20, "the start to go on to its end")
    assert engine.status().starts == 1


def test_ps_tells_what_a_model_does(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.2})
    engine.warmup()
    asking = threading.Thread(target=lambda: engine.generate("a b c d e f g h i j", max_tokens=10))
    asking.start()
    wait_until(lambda: "1 running" in line_of(engine), 10, "a request to be seen")
    asking.join()
    wait_until(lambda: " idle " in line_of(engine), 10, "it to be idle again")


@pytest.mark.parametrize(("environment", "has_bar"), [({}, True), ({"TERM": "dumb"}, False)])
def test_a_start_shows_a_bar_on_a_terminal_that_can(
    fake_engine: MakeEngine, environment: dict[str, Any], has_bar: bool
) -> None:
    engine = fake_engine({"start_delay_s": 2, "weights": 4})
    words, variables = loading(engine)
    shown = shown_by(words, **variables, **environment)
    *bars, last = frames_of(shown)
    assert last.endswith(" after its last use")
    assert any("loading weights" in bar for bar in bars) is has_bar
    assert ("\x1b" in shown or "\r" in shown.replace("\r\n", "")) is has_bar
