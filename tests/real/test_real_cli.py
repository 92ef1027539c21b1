"""vllm-local on real vLLM: one engine looked at through its whole life, and a doctor's visit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import choose, find_engines
from shared_engine.runtime.record import EngineState
from tests.support.engines import settings_of
from tests.support.paths import REPOSITORY
from tests.support.processes import all_processes, any_exists, run_app
from tests.support.waiting import wait_until

COMMAND = [sys.executable, "-m", "shared_engine.cli"]


def vllm_local(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=90, cwd=REPOSITORY
    )


def status(key: str) -> dict[str, Any]:
    done = vllm_local("status", key, "--json")
    assert done.returncode == 0, done.stderr
    (engine,) = json.loads(done.stdout)
    return dict(engine)


def names(process: dict[str, Any]) -> list[str]:
    return [process["name"], *(name for child in process["children"] for name in names(child))]


@pytest.mark.timeout(120)
def test_an_engine_through_its_life(own_engine: Callable[..., Engine]) -> None:
    engine = own_engine()
    known = {each.key for each in find_engines()}
    warming = threading.Thread(target=engine.warmup)
    warming.start()
    wait_until(lambda: any(each.state is EngineState.STARTING for each in find_engines()), 30, "the start")
    (key,) = (each.key for each in find_engines() if each.key is not None and each.key not in known)
    assert status(key)["state"] == "starting"
    assert status(key)["start_phase"] in ("import", "config")
    follow = [*COMMAND, "logs", "-f", key]
    with killed_at_the_end(subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as logs:
        warming.join()
        live_to_the_end(engine, key)
        assert logs.stdout is not None
        text = ""
        while "standby -> stopped" not in text:
            text += logs.stdout.readline()
    assert "starting -> ready" in text
    assert "Starting vLLM server" in text
    assert "\x1b" not in text


def live_to_the_end(engine: Engine, key: str) -> None:
    ready = status(key)
    assert (ready["state"], ready["starts"], ready["leases"], ready["last_error"]) == ("ready", 1, 0, None)
    assert ready["start_s"] == engine.status().start_s
    assert ready["memory_bytes"] > 200 << 20
    assert ready["idle_for_s"] < 60
    assert names(ready["processes"])[:3] == ["supervisor", "launcher", "server"]
    assert any(name.startswith("EngineCore") for name in names(ready["processes"]))
    assert "tiny_chat" in vllm_local("status").stdout

    with killed_at_the_end(run_app("long_batch", settings_of(engine))) as app:
        wait_until(lambda: info(key).leases, 30, "requests in flight")
        leased = status(key)
        assert (leased["leases"], leased["lease_holders"], leased["idle_for_s"]) == (1, [app.pid], None)
        busy = vllm_local("evict", key, "--timeout", "0.2")
        assert busy.returncode == 3, (
            f"{busy.stdout}\n{what_the_app_said(app)}\n{Path(info(key).log_file or '').read_text()[-4000:]}"
        )
        assert f"of process {app.pid} (" in busy.stderr

    pids = all_processes(engine)
    evicted = vllm_local("evict", key)
    assert (evicted.returncode, evicted.stderr) == (0, "")
    standby = status(key)
    assert standby["state"] == "standby"
    assert "server" not in names(standby["processes"])
    stopped = vllm_local("stop", key)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert not any_exists(pids)
    assert info(key).state is EngineState.STOPPED


def what_the_app_said(app: subprocess.Popen[str]) -> str:
    with suppress(subprocess.TimeoutExpired):
        app.wait(5)
    app.kill()
    return f"the app ended with {app.returncode}: {app.communicate()}"


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def info(key: str) -> EngineInfo:
    return choose(find_engines(), key)


@pytest.mark.long
@pytest.mark.apart
@pytest.mark.timeout(120)
def test_doctor_finds_that_an_engine_starts(runtime_root: object) -> None:
    before = {each.key for each in find_engines()}
    done = vllm_local("doctor", "--json")
    found = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, [finding for finding in found.values() if finding["outcome"] == "fail"]
    assert "a tiny model with random weights: started in " in found["smoke test"]["detail"]
    assert " 10 tokens in " in found["smoke test"]["detail"]
    assert {each.key for each in find_engines()} == before
