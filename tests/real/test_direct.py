"""vLLM under the app itself (mode="direct"), in apps whose own Python has it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from shared_engine.runtime.directory import runtime_root
from tests.support.direct import run_direct_app, run_in_vllms_python
from tests.support.in_flight import LONG, SHORT_ANSWER
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.processes import any_exists, end_of
from tests.support.questions import answers_of, answers_of_adapters
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def app(tiny_chat: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """See apps/direct_answers.py."""
    app = run_direct_app("direct_answers", json.dumps({**tiny_chat, "idle_ttl_s": 600}))
    yield app
    app.kill()
    end_of(app, 10)


@pytest.fixture(scope="module")
def told(tiny_chat: dict[str, Any], app: subprocess.Popen[str]) -> dict[str, Any]:
    """What the app has been answered and has seen, and what a local engine answers."""
    local = json.loads(json.dumps({**answers_of(Engine(**tiny_chat)), **answers_of_adapters(tiny_chat)}))
    assert app.stdout
    line = app.stdout.readline()
    if not line:
        pytest.fail(end_of(app, 1)[2])
    return {"local": local, **json.loads(line)}


@pytest.fixture(scope="module")
def life(tiny_chat: dict[str, Any]) -> dict[str, Any]:
    """What another app has seen in its engine's life; see apps/direct_life.py."""
    code, out, err = end_of(run_direct_app("direct_life", json.dumps({**tiny_chat, "idle_ttl_s": 600})), 300)
    assert code == 0, err
    child, seen = out.splitlines()
    return {"child": json.loads(child), "seen": json.loads(seen)}


def test_answers_and_errors_are_those_of_a_local_engine(told: dict[str, Any]) -> None:
    assert told["answers"] == told["local"]


def test_threads_event_loops_and_a_running_loop_share_one_start(told: dict[str, Any]) -> None:
    assert told["seen"]["answers of threads and loops"] == [SHORT_ANSWER]
    assert told["seen"]["starts"] == 1


def test_environment_signals_logging_and_multiprocessing_stay_the_apps(told: dict[str, Any]) -> None:
    assert told["seen"]["what is the app's has changed"] == []


def test_a_stream_that_is_left_is_aborted_and_a_request_forbids_eviction(told: dict[str, Any]) -> None:
    assert told["seen"]["a stream that was left was aborted"] is True
    assert told["seen"]["evicted under a request"] is False


@pytest.mark.long
def test_a_death_under_a_request_goes_unseen_and_under_a_stream_is_told(life: dict[str, Any]) -> None:
    assert life["seen"]["tokens of a request whose worker was killed"] == LONG["max_tokens"]
    assert life["seen"]["starts after that"] == 2
    assert life["seen"]["left of the killed ones"] == []
    assert life["seen"]["shared memory left of them"] == []
    assert (
        "vLLM's EngineCore was killed by SIGKILL (from outside)" in life["seen"]["a stream whose EngineCore was killed"]
    )


@pytest.mark.long
def test_a_forked_child_has_an_engine_of_its_own_and_leaves_the_parents_alone(life: dict[str, Any]) -> None:
    assert life["child"] == {"child": SHORT_ANSWER, "shares": False}
    assert life["seen"]["exit code of a forked child"] == 7
    assert life["seen"]["answer after its end"] == SHORT_ANSWER


@pytest.mark.long
def test_an_engine_that_nobody_uses_leaves_memory_and_another_one_stays(life: dict[str, Any]) -> None:
    assert life["seen"]["memory while loaded, MB"] > 300
    assert life["seen"]["two engines have their own metrics"] is True
    assert life["seen"]["an idle one has left"] is True
    assert life["seen"]["its life"] == [1, {"idle": 1}, {}]
    assert life["seen"]["and only that"] is True


@pytest.mark.long
def test_an_app_ends_well_with_its_engine_and_prints_only_what_it_says(
    tiny_chat: dict[str, Any], tmp_path: Path
) -> None:
    code = (REPOSITORY / "examples" / "direct_batch.py").read_text()
    assert len(code.splitlines()) < 40
    settings = {**tiny_chat, "model": None, "show_progress": False}
    sizes = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
    script = tmp_path / "direct.py"
    script.write_text(code.replace("gpu_memory_utilization=0.3", sizes))
    code_at_end, out, err = end_of(run_in_vllms_python(script, str(TINY_CHAT)), 120)
    assert (code_at_end, "Traceback" in err, "leaked" in err) == (0, False, False), err
    assert out.splitlines() == [
        "64 answers; the first: The capital of France is Paris.",
        "The capital of Italy is Rome.",
        "stopped",
    ]


def test_a_killed_app_takes_its_engine_with_it_and_leaves_nothing(
    app: subprocess.Popen[str], told: dict[str, Any]
) -> None:
    assert any_exists(told["pids"])
    app.kill()
    wait_until(lambda: not any_exists(told["pids"]), 15, "vLLM's processes to end")
    assert told["files"]
    wait_until(lambda: not any(map(os.path.exists, told["files"])), 15, "their shared memory to go")
    assert Path(told["log"]).is_relative_to(runtime_root() / "direct")
