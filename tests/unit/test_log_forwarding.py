"""vLLM's log in the app's: who forwards it, for how long, each line once. The log is a file that the test writes."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_engine.logs import TREE, JsonFormatter
from shared_engine.request import log_forwarding
from shared_engine.request.log_forwarding import forward_log, stop_forwarding
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)


class Wanted:
    """Whoever wants it."""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "engine.log"
    path.write_text("INFO before\n")
    yield path
    log_forwarding._forward_the_last_lines()
    assert threads() == []
    logging.getLogger(TREE).handlers.clear()


def write(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "vllm-local-log"]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_lines_come_with_level_and_source(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Although the root's level is WARNING: asking for them is enough."""
    wanted = Wanted()
    forward_log(log, "tiny", wanted)
    write(log, "(EngineCore pid=7) INFO 11-29 03:36:23 [x.py:1] one\nDEBUG [y.py:2] two\n")
    write(log, "2026-11-29 03:36:23 WARNING vllm-local supervisor: starting -> failed, three\nhalf a")
    stop_forwarding(log, wanted)
    assert [(each.name, each.levelname, each.getMessage()) for each in caplog.records] == [
        ("shared_engine.vllm", "INFO", "(EngineCore pid=7) [x.py:1] one"),
        ("shared_engine.vllm", "DEBUG", "[y.py:2] two"),
        ("shared_engine.supervisor", "WARNING", "starting -> failed, three"),
        ("shared_engine.vllm", "INFO", "half a"),
    ]
    told = json.loads(JsonFormatter().format(caplog.records[0]))
    assert (told["engine"], told["engine_process"], told["level"]) == ("tiny", "EngineCore pid=7", "INFO")
    assert threads() == []


@pytest.mark.parametrize("logger", ["shared_engine", "shared_engine.vllm"])
def test_a_level_that_was_chosen_holds(log: Path, caplog: pytest.LogCaptureFixture, logger: str) -> None:
    caplog.set_level(logging.WARNING, logger)
    wanted = Wanted()
    forward_log(log, "tiny", wanted)
    write(log, "INFO one\nWARNING two\n")
    stop_forwarding(log, wanted)
    assert messages(caplog) == ["two"]


def test_logging_that_is_disabled_stays_so(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = Wanted()
    logging.disable(logging.INFO)
    try:
        forward_log(log, "tiny", wanted)
        write(log, "INFO one\nWARNING two\n")
        stop_forwarding(log, wanted)
    finally:
        logging.disable(logging.NOTSET)
    assert messages(caplog) == ["two"]


def test_each_line_comes_once_however_many_want_it(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    several = [Wanted() for _ in range(5)]
    for wanted in several * 3:
        forward_log(log, "tiny", wanted)
    assert len(threads()) == 1
    write(log, "INFO one\n")
    for wanted in several[:-1]:
        stop_forwarding(log, wanted)
    assert len(threads()) == 1
    write(log, "INFO two\n")
    stop_forwarding(log, several[-1])
    stop_forwarding(log, several[-1])
    assert messages(caplog) == ["one", "two"]
    write(log, "INFO nobody wants this\n")
    forward_log(log, "tiny", several[0])
    write(log, "INFO three\n")
    stop_forwarding(log, several[0])
    assert messages(caplog) == ["one", "two", "three"]


@pytest.mark.slow
def test_it_ends_with_those_who_want_it(log: Path) -> None:
    wanted = Wanted()
    forward_log(log, "tiny", wanted)
    del wanted
    gc.collect()
    wait_until(lambda: threads() == [], 10, "the end of the thread")


@pytest.mark.slow
def test_lines_go_on_across_a_rotation(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = Wanted()
    forward_log(log, "tiny", wanted)
    write(log, "INFO one\n")
    log.rename(log.with_name("engine.log.1"))
    write(log, "INFO two\n")
    wait_until(lambda: messages(caplog) == ["one", "two"], 10, "both lines")
    log.write_text("INFO 3\n")  # cut short, and written again
    wait_until(lambda: messages(caplog) == ["one", "two", "3"], 10, "the third")
    stop_forwarding(log, wanted)


def test_a_filter_or_handler_that_fails_holds_up_no_line(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = Wanted()

    def fail(record: logging.LogRecord) -> bool:
        if "bad" in record.getMessage():
            raise RuntimeError("mine")
        return True

    logger = logging.getLogger("shared_engine.vllm")
    logger.addFilter(fail)
    try:
        forward_log(log, "tiny", wanted)
        write(log, "INFO bad\nINFO good\n")
        stop_forwarding(log, wanted)
    finally:
        logger.removeFilter(fail)
    assert messages(caplog) == ["good"]


def test_who_can_have_no_thread_or_file_does_without(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted()
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no more")))
    forward_log(log, "tiny", wanted)
    monkeypatch.undo()
    forward_log(tmp_path, "a folder, which can't be read", wanted)
    assert threads() == []
    stop_forwarding(log, wanted)


@pytest.mark.slow
def test_a_forked_child_forwards_from_its_own_request_on(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = Wanted()
    forward_log(log, "tiny", wanted)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        write(log, "INFO of the parent\n")
        wait_until(lambda: messages(caplog) == ["of the parent"], 10, "the line")
        assert pool.apply(_in_child, (log,)) == (0, ["of both"], 0)
    stop_forwarding(log, wanted)
    assert messages(caplog) == ["of the parent", "of both"]


def _in_child(log: Path) -> tuple[int, list[str], int]:
    before, wanted, found = len(threads()), Wanted(), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.root.addHandler(handler)
    forward_log(log, "tiny", wanted)
    write(log, "INFO of both\n")
    stop_forwarding(log, wanted)
    return before, found, len(threads())


AT_EXIT = """
import sys
from pathlib import Path
from shared_engine.request.log_forwarding import forward_log
log, wanted = Path(sys.argv[1]), object
forward_log(log, "tiny", wanted)
with log.open("a") as file:
    file.write("WARNING the last line\\n")
"""


@pytest.mark.slow
def test_the_last_lines_come_at_exit_and_without_any_configuration(log: Path) -> None:
    """On stderr, as nobody else would hear them."""
    command = [sys.executable, "-c", AT_EXIT, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=30)
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING ")
    assert line.endswith(" shared_engine.vllm: the last line")


def test_it_keeps_no_file_open(log: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        wanted = Wanted()
        forward_log(log, "tiny", wanted)
        stop_forwarding(log, wanted)
    assert len(os.listdir("/proc/self/fd")) == before
