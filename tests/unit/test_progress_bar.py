"""What a waiting call shows: real bytes on a pseudo-terminal, log lines elsewhere, nothing that stays."""

from __future__ import annotations

import asyncio
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator

import pytest
from tqdm import tqdm  # type: ignore[import-untyped]

from shared_engine.request import progress_bar
from shared_engine.request.progress_bar import StartReporter
from shared_engine.runtime.progress import Progress, StartPhase
from tests.support.paths import REPOSITORY

LOADING = Progress(StartPhase.WEIGHTS, 3, 8)
COMPILING = Progress(StartPhase.COMPILE)
MODEL = "/models/tiny_chat"


class Terminal:
    """A pseudo-terminal as this process's stderr; what it shows is worked out from the bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 70) -> None:
        self._monkeypatch = monkeypatch
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
        os.set_blocking(self._master, False)
        self.stderr = open(slave, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.received = b""

    def become_stderr(self) -> None:
        """To be called in the test: pytest sets its own after the fixtures."""
        self._monkeypatch.setattr(sys, "stderr", self.stderr)

    def text(self) -> str:
        try:
            while data := os.read(self._master, 1 << 16):
                self.received += data
        except BlockingIOError:
            pass
        return self.received.decode()

    def screen(self) -> list[str]:
        """The lines on it, without what is blank at the end."""
        lines, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", self.text()):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif piece == "\x1b[A":
                row -= 1
            else:
                lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
                column += len(piece)
        return [line.rstrip() for line in "\n".join(line.rstrip() for line in lines).rstrip().split("\n")]

    def close(self) -> None:
        self.stderr.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(monkeypatch)
    yield terminal
    terminal.close()


@pytest.fixture(autouse=True, scope="module")
def _no_monitor() -> Iterator[None]:
    """Bars of the app start tqdm's thread, which would be counted."""
    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0
    yield
    tqdm.monitor_interval = interval


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr(progress_bar, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress_bar, "TICK_S", 0.01)
    caplog.set_level(logging.INFO, "shared_engine")
    yield
    assert not progress_bar._waits


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_bar_is_drawn_on_a_terminal_and_leaves_it_clean(
    terminal: Terminal, caplog: pytest.LogCaptureFixture
) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    reporter.report(LOADING)
    await until(lambda: "3/8" in terminal.text())
    assert re.fullmatch(r"tiny_chat: loading weights 3/8 \|█.* +\| 00:00", terminal.screen()[0])
    reporter.report(COMPILING)
    assert re.fullmatch(r"tiny_chat: compiling +00:00", "\n".join(terminal.screen()))
    reporter.report(Progress(StartPhase.GRAPHS, 1, 35, "FULL"))
    assert terminal.screen()[0].startswith("tiny_chat: capturing CUDA graphs 1/35 (FULL) |")
    reporter.close(None)
    assert terminal.screen() == [""]
    assert terminal.text().endswith("\r")
    assert not caplog.records


async def test_the_bar_of_a_download_fills(terminal: Terminal) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    for share in (0.0, 0.4, 1.0):
        done = int(share * 3_400_000_000)
        detail = f"{done / 1e9:.2f} of 3.40 GB"
        reporter.report(Progress(StartPhase.DOWNLOAD, done, 3_400_000_000, detail, unit="B"))
        await until(lambda: terminal.screen() != [""])
        (line,) = re.findall(r"^tiny_chat: fetching the model's files \(.* GB\) \|(.*)\| 00:00$", terminal.screen()[0])
        assert line.count("█") == round(share * len(line)), line
    reporter.close(None)


async def test_the_clock_ticks_without_a_report(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    await until(lambda: terminal.screen()[0].split() == ["tiny_chat:", "starting", "00:00"])
    reporter._wait._began -= 3661
    await until(lambda: terminal.screen()[0].split() == ["tiny_chat:", "starting", "61:01"])
    reporter.close(None)


async def test_a_short_wait_shows_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal.become_stderr()
    monkeypatch.setattr(progress_bar, "SHOW_AFTER_S", 60.0)
    for wants_bar in (True, False):
        reporter = StartReporter(MODEL, wants_bar)
        reporter.report(LOADING)
        await asyncio.sleep(0)
        reporter.close(None)
    assert terminal.text() == "" and not caplog.records


async def test_a_narrow_terminal_keeps_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, columns=20)
    terminal.become_stderr()
    reporter = StartReporter("org/a-model-with-a-{long}-name", show_progress=True)
    for progress in (COMPILING, LOADING):
        reporter.report(progress)
        await until(lambda: "a-model" in terminal.text())
        assert max(len(line) for line in re.split(r"[\r\n]", terminal.text())) <= 20
    reporter.close(None)
    assert terminal.screen() == [""]
    terminal.close()


async def test_a_terminal_of_unknown_size_has_a_bar_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, columns=0)
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    reporter.report(LOADING)
    await until(lambda: "3/8" in terminal.text())
    assert len(terminal.screen()[0]) == 79
    reporter.close(None)
    assert terminal.screen() == [""]
    terminal.close()


@pytest.mark.parametrize("error", [None, RuntimeError("no"), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_however_the_waiting_ends_the_line_is_clean(terminal: Terminal, error: BaseException | None) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    await until(lambda: "tiny_chat" in terminal.text())
    reporter.close(error)
    reporter.close(error)
    assert terminal.screen() == [""]
    await asyncio.sleep(0.03)
    assert terminal.screen() == [""]


async def test_one_bar_for_two_loops_and_no_thread_of_tqdm(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.become_stderr()
    monkeypatch.setattr(tqdm, "monitor_interval", 10)
    monitor, threads = tqdm.monitor, threading.active_count()  # another test may have used tqdm its own way
    first = StartReporter(MODEL, show_progress=True)
    await until(lambda: "tiny_chat" in terminal.text())
    other_closes, other_closed = threading.Event(), threading.Event()

    async def wait_too() -> None:
        other = StartReporter(MODEL, show_progress=True)
        other.report(LOADING)
        await asyncio.to_thread(other_closes.wait, 5)
        other.close(None)
        other_closed.set()

    other_loop = threading.Thread(target=asyncio.run, args=(wait_too(),))
    other_loop.start()
    await until(lambda: "3/8" in terminal.screen()[0])
    assert len(terminal.screen()) == 1
    other_closes.set()
    await until(other_closed.is_set)
    assert len(terminal.screen()) == 1 and "3/8" in terminal.screen()[0]
    first.close(None)
    assert terminal.screen() == [""]
    other_loop.join()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert threading.active_count() == threads and tqdm.monitor is monitor


async def test_two_models_and_a_bar_of_the_caller_have_a_line_each(terminal: Terminal) -> None:
    terminal.become_stderr()
    with tqdm(total=5, desc="chapters", file=terminal.stderr, leave=True):
        a = StartReporter("org/a", show_progress=True)
        b = StartReporter("org/b", show_progress=True)
        await until(lambda: "b: starting" in terminal.text())
        shown = terminal.screen()
        assert len(shown) == 3 and shown[0].startswith("chapters") and {shown[1][0], shown[2][0]} == {"a", "b"}
        a.close(None)
        b.close(None)
        assert len(terminal.screen()) == 1


async def test_without_a_terminal_each_phase_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        reporter = StartReporter(MODEL, show_progress=True)
        reporter.report(LOADING)
        await until(lambda: len(caplog.records) == 1)
        for done in range(4, 9):
            reporter.report(Progress(StartPhase.WEIGHTS, done, 8))
        reporter.report(COMPILING)
        reporter.close(None)
    with os.fdopen(read) as pipe:
        assert pipe.read() == ""
    assert [re.sub(r"\d+\.\d", "0.0", line) for line in caplog.messages] == [
        "tiny_chat is not ready yet: loading weights, after 0.0 s",
        "tiny_chat is not ready yet: compiling, after 0.0 s",
        "tiny_chat is ready, after 0.0 s",
    ]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


async def test_show_progress_false_draws_nothing_and_logs(terminal: Terminal, caplog: pytest.LogCaptureFixture) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=False)
    reporter.report(COMPILING)
    await until(lambda: len(caplog.records) == 1)
    reporter.close(RuntimeError("no"))
    assert terminal.text() == "" and len(caplog.records) == 1


async def test_the_bar_leaves_with_the_last_who_wants_one(terminal: Terminal, caplog: pytest.LogCaptureFixture) -> None:
    terminal.become_stderr()
    wants, wants_none = StartReporter(MODEL, show_progress=True), StartReporter(MODEL, show_progress=False)
    await until(lambda: "tiny_chat" in terminal.text())
    wants.close(asyncio.CancelledError())
    assert terminal.screen() == [""]
    wants_none.report(LOADING)
    assert terminal.screen() == [""] and len(caplog.records) == 1
    wants_none.close(None)


def closed_stream() -> io.TextIOWrapper:
    with open(os.devnull, "w") as stream:
        return stream


class Broken(io.StringIO):
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError("the terminal is gone")


@pytest.mark.parametrize("stream", [None, closed_stream(), Broken()], ids=["none", "closed", "broken"])
async def test_a_broken_stderr_harms_nobody(
    stream: io.TextIOBase | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    reporter = StartReporter(MODEL, show_progress=True)
    reporter.report(LOADING)
    await until(lambda: len(caplog.records) == 1)
    reporter.close(None)
    # Bars of the app, in other threads, don't wait for a lock that was left behind.
    assert await asyncio.wait_for(asyncio.to_thread(lambda: list(tqdm([1], file=io.StringIO()))), 5) == [1]


async def test_a_terminal_that_goes_away_harms_nobody(terminal: Terminal) -> None:
    terminal.become_stderr()
    reporter = StartReporter(MODEL, show_progress=True)
    await until(lambda: "tiny_chat" in terminal.text())
    terminal.stderr.close()
    reporter.report(LOADING)
    reporter.close(None)


async def test_phases_are_logged_where_tqdm_draws_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal.become_stderr()
    monkeypatch.setattr(progress_bar, "new_bar", lambda **_: None)
    reporter = StartReporter(MODEL, show_progress=True)
    reporter.report(LOADING)
    await until(lambda: len(caplog.records) == 1)
    reporter.close(None)
    assert terminal.text() == ""


async def test_a_loop_that_ended_without_closing_leaves_no_old_clock(terminal: Terminal) -> None:
    terminal.become_stderr()

    async def forget() -> None:
        StartReporter(MODEL, show_progress=True)
        await until(lambda: "tiny_chat" in terminal.text())

    await asyncio.to_thread(asyncio.run, forget())
    old = progress_bar._waits[MODEL]
    reporter = StartReporter(MODEL, show_progress=True)
    assert progress_bar._waits[MODEL] is not old and terminal.screen() == [""]
    reporter.close(None)


FORK = """
import asyncio, os, sys
from shared_engine.request import progress_bar
from shared_engine.request.progress_bar import StartReporter
progress_bar.SHOW_AFTER_S, progress_bar.TICK_S = 0.0, 0.01

async def main():
    reporter = StartReporter("org/parent", True)
    while progress_bar._waits["org/parent"]._bar is None:
        await asyncio.sleep(0.001)
    reporter._timer.cancel()
    pid = os.fork()
    if pid == 0:
        os.dup2(int(sys.argv[1]), 2)
        assert not progress_bar._waits
        reporter._tick()
        reporter.close(None)
        sys.exit(0)  # with all of the interpreter's ending
    assert os.waitpid(pid, 0)[1] == 0
    reporter.close(None)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_forked_child_leaves_the_parents_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    of_parent, of_child = Terminal(monkeypatch), Terminal(monkeypatch)
    fd = of_child.stderr.fileno()
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(fd)],
        stderr=of_parent.stderr,
        pass_fds=(fd,),
        cwd=REPOSITORY,
        timeout=20,
        check=False,
    )
    assert (done.returncode, of_child.text()) == (0, "")
    assert "parent: starting" in of_parent.text() and of_parent.screen() == [""]
    of_parent.close()
    of_child.close()


@pytest.mark.slow
def test_tqdm_is_imported_only_to_draw() -> None:
    script = """
import asyncio, sys, shared_engine
from shared_engine.request import progress_bar
from shared_engine.runtime.progress import Progress, StartPhase
progress_bar.SHOW_AFTER_S = 0.0
async def main():
    reporter = progress_bar.StartReporter("m", True)
    reporter.report(Progress(StartPhase.WEIGHTS))
    await asyncio.sleep(0.01)
    reporter.close(None)
asyncio.run(main())
print("tqdm" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, timeout=20, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
