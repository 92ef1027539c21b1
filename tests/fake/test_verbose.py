"""``verbose=True``: vLLM's own log in the app's; and the levels of supervisor and launcher. On the fake vLLM."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared_engine import Engine
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO, directory_of, hello, log_of
from tests.support.fake_vllm.environment import make_environment
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
Log = pytest.LogCaptureFixture


def forwarded(caplog: Log, source: str = "vllm") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == f"shared_engine.{source}"]


def threads() -> int:
    return sum(thread.name == "vllm-local-log" for thread in threading.enumerate())


def written(engine: Engine) -> list[str]:
    """vLLM's lines in the log of the engine, without level and time."""
    ours = ("vllm-local supervisor", "vllm-local launcher")
    lines = [line for line in log_of(engine).splitlines() if not any(name in line for name in ours)]
    return [line.split("] ", 1)[-1].removeprefix("INFO:     ") for line in lines if line]


@pytest.mark.smoke
def test_each_line_of_a_start_is_in_the_apps_log_once(fake_engine: MakeEngine, caplog: Log) -> None:
    engine = fake_engine({"weights": 3}, verbose=True)
    twins = [Engine(engine.settings) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hello, [engine, *twins])) == [ANSWER] * 4
    for each in [engine, *twins]:
        each.close()
    assert threads() == 0
    found = forwarded(caplog)
    assert [line.split("] ", 1)[-1] for line in found] == written(engine)
    assert len(found) > 3
    assert any("starting -> ready" in line for line in forwarded(caplog, "supervisor"))
    named = {vars(record)["engine"] for record in caplog.records if record.name == "shared_engine.vllm"}
    assert named == {engine.status().name}


def test_a_return_comes_too_and_what_was_before_does_not(fake_engine: MakeEngine, caplog: Log) -> None:
    silent = fake_engine()
    assert hello(silent) == ANSWER
    engine = Engine(**{**silent.settings.model_dump(exclude_unset=True), "verbose": True})
    assert hello(engine) == ANSWER, "it shares the engine: what is shown here decides no process"
    assert engine.status().starts == 1
    before = written(engine)
    engine.evict()
    assert hello(engine) == ANSWER
    engine.close()
    after = written(engine)[len(before) :]
    assert [line.split("] ", 1)[-1] for line in forwarded(caplog)] == after
    assert len(after) > 3


def test_a_failed_start_shows_why(fake_engine: MakeEngine, caplog: Log) -> None:
    engine = fake_engine({"exit_at": "weights", "exit_code": 3}, verbose=True)
    with pytest.raises(Exception, match="the engine did not start"):
        hello(engine)
    engine.close()
    (failed,) = [record for record in caplog.records if "-> failed" in record.getMessage()]
    assert (failed.name, failed.levelname) == ("shared_engine.supervisor", "WARNING")
    assert forwarded(caplog)


async def test_on_an_event_loop(fake_engine: MakeEngine, caplog: Log) -> None:
    async with fake_engine(verbose=True) as engine:
        answers = await asyncio.gather(*(engine.achat(HELLO) for _ in range(5)))
        assert {answer.text for answer in answers} == {ANSWER}
    assert threads() == 0
    assert [line.split("] ", 1)[-1] for line in forwarded(caplog)] == written(engine)


def test_it_is_off_by_default_and_ends_with_the_object(fake_engine: MakeEngine, caplog: Log) -> None:
    silent = fake_engine()
    assert hello(silent) == ANSWER
    assert threads() == 0
    assert forwarded(caplog) == []
    engine = Engine(**{**silent.settings.model_dump(exclude_unset=True), "verbose": True})
    assert hello(engine) == ANSWER
    assert threads() == 1
    del engine
    gc.collect()
    wait_until(lambda: threads() == 0, 10, "the end of the thread")


# ---- levels


@pytest.mark.parametrize(
    ("level", "supervisor", "launcher"),
    [
        (None, {"INFO"}, False),
        ("debug", {"DEBUG", "INFO"}, True),
        ("warning", set(), False),
    ],
)
def test_the_level_of_supervisor_and_launcher(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, level: str | None, supervisor: set[str], launcher: bool
) -> None:
    if level is not None:
        monkeypatch.setenv("VLLM_LOCAL_LOG_LEVEL", level)
    engine = fake_engine({"weights": 2})
    assert hello(engine) == ANSWER
    lines = log_of(engine).splitlines()
    levels = {line.split()[2] for line in lines if "vllm-local supervisor" in line}
    assert levels == supervisor
    assert any(line.startswith("DEBUG vllm-local launcher: forked the server") for line in lines) is launcher
    assert any(line.startswith("INFO") or ") INFO" in line for line in lines), "vLLM's own lines are vLLM's to choose"
    assert "VLLM_LOCAL_LOG_LEVEL" not in directory_of(engine).spec.read_text()


def test_the_level_reaches_a_launcher_that_runs_itself_again_with_torch_s_libgomp(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "engine", "cpu")
    (site,) = (tmp_path / "engine" / "lib").glob("python*/site-packages")
    for file in (site / "torch" / "__init__.py", site / "torch.libs" / "libgomp.so"):
        file.parent.mkdir()
        file.touch()
    monkeypatch.setenv("VLLM_LOCAL_LOG_LEVEL", "debug")
    engine = fake_engine(python=python)
    assert hello(engine) == ANSWER
    pid = json.loads(directory_of(engine).record.read_text())["launcher_pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"LD_PRELOAD={site / 'torch.libs' / 'libgomp.so'}".encode() in environment
    assert b"-u" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert "DEBUG vllm-local launcher: forked the server" in log_of(engine)


def test_the_level_decides_no_engine_and_keeps_no_launcher_from_being_used_again(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_engine()
    assert hello(engine) == ANSWER
    launcher = json.loads(directory_of(engine).record.read_text())["launcher_pid"]
    engine.evict()
    monkeypatch.setenv("VLLM_LOCAL_LOG_LEVEL", "debug")
    monkeypatch.setenv("VLLM_LOCAL_LOG_FORMAT", "json")
    twin = Engine(engine.settings)
    assert hello(twin) == ANSWER
    assert twin.status().key == engine.status().key
    assert json.loads(directory_of(engine).record.read_text())["launcher_pid"] == launcher


def test_a_secret_is_neither_in_the_log_nor_in_an_error(fake_engine: MakeEngine, caplog: Log) -> None:
    caplog.set_level(logging.DEBUG)
    key = "hf_" + "aB3" * 10
    engine = fake_engine({"exit_at": "weights"}, verbose=True, engine_args={"hf_token": key})
    with pytest.raises(Exception, match="did not start") as caught:
        hello(engine)
    engine.close()
    assert "aB3" not in log_of(engine) + caplog.text + str(caught.value)
