"""Lines of an engine's log, with what each says of itself."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from shared_engine.observe.log_lines import MAX_LINE, LineReader, LogLine
from shared_engine.observe.log_reader import FollowedLog

YEAR = time.localtime().tm_year
TODAY = time.strftime("%m-%d")
AT = f"{YEAR}-{TODAY}T11:36:37"
ENDED = "vllm-local: EngineCore, process 7, has ended: -9"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            f"(EngineCore_DP0 pid=71) INFO {TODAY} 11:36:37 [core.py:396] init engine took 4 s",
            LogLine("[core.py:396] init engine took 4 s", 20, "vllm", "EngineCore_DP0 pid=71", AT),
        ),
        (
            f"WARNING {TODAY} 11:36:37.123 [vllm.py:1703] Enforce eager set",
            LogLine("[vllm.py:1703] Enforce eager set", 30, time=AT),
        ),
        (
            "(APIServer pid=1) INFO:     Started server process [1]",
            LogLine("Started server process [1]", 20, "vllm", "APIServer pid=1"),
        ),
        ("ERROR:    [Errno 98] address in use", LogLine("[Errno 98] address in use", 40)),
        ("DEBUG [x.py:1] y", LogLine("[x.py:1] y", 10)),
        (
            "2026-11-29 03:36:23 WARNING vllm-local supervisor: starting -> failed, why",
            LogLine("starting -> failed, why", 30, "supervisor", time="2026-11-29T03:36:23"),
        ),
        ("WARNING vllm-local launcher: not compiled", LogLine("not compiled", 30, "launcher")),
        (ENDED, LogLine(ENDED, 20)),
        ("[W1129 03:36:23.123 ProcessGroup.cpp:1] x", LogLine("[W1129 03:36:23.123 ProcessGroup.cpp:1] x", 30)),
        ("[rank0]:[E1129 03:36:23.123 x.cpp:1] x", LogLine("[rank0]:[E1129 03:36:23.123 x.cpp:1] x", 40)),
        ("host:7:7 [0] NCCL WARN Call failed", LogLine("host:7:7 [0] NCCL WARN Call failed", 30)),
        ("/x/y.py:12: UserWarning: old", LogLine("/x/y.py:12: UserWarning: old", 30)),
        ("torch.OutOfMemoryError: CUDA out of memory", LogLine("torch.OutOfMemoryError: CUDA out of memory", 40)),
        ("INFORMATION is no level", LogLine("INFORMATION is no level", 20)),
        ("\x1b[32mINFO\x1b[0m: \x1b]0;title\x07green", LogLine("green", 20)),
        ("\r 10%|#\r 100%|##########", LogLine(" 100%|##########", 20)),
        ("windows\r", LogLine("windows", 20)),
    ],
)  # fmt: skip
def test_a_line(text: str, line: LogLine) -> None:
    assert LineReader().feed(f"{text}\n") == [line]


def test_a_line_of_the_year_before() -> None:
    (line,) = LineReader().feed("INFO 12-31 23:59:59 x\n")
    expected = YEAR if TODAY == "12-31" else YEAR - 1
    assert line.time == f"{expected}-12-31T23:59:59"


def test_a_traceback_is_an_error_to_its_end() -> None:
    text = """\
(EngineCore pid=7) Traceback (most recent call last):
(EngineCore pid=7)   File "x.py", line 1, in f
(APIServer pid=1) loading
(EngineCore pid=7)     raise KeyError
(EngineCore pid=7) KeyError: 'x'
(EngineCore pid=7)
(EngineCore pid=7) During handling of the above exception, another exception occurred:
(EngineCore pid=7) done
(EngineCore pid=7) INFO 11-29 03:36:23 [x.py:1] on we go
"""
    levels = [(line.process[:3], logging.getLevelName(line.level)) for line in LineReader().feed(text)]
    assert levels == [
        ("Eng", "ERROR"),
        ("Eng", "ERROR"),
        ("API", "INFO"),
        ("Eng", "ERROR"),
        ("Eng", "ERROR"),
        ("Eng", "ERROR"),
        ("Eng", "INFO"),
        ("Eng", "INFO"),
    ]


def test_a_line_in_pieces_is_one_line() -> None:
    reader = LineReader()
    assert reader.feed("INFO: one") == []
    assert reader.feed(" line\r") == []
    assert reader.feed("\n\n  \nINFO: an") == [LogLine("one line", 20)]
    assert reader.end() == [LogLine("an", 20)]
    assert reader.end() == []


def test_a_line_without_end_is_cut() -> None:
    reader = LineReader()
    found = [line for _ in range(20) for line in reader.feed("x" * 5000)]
    found += reader.feed("the rest\nINFO: next\n")
    assert [line.text for line in found] == ["x" * MAX_LINE + " ...", "next"]
    (whole,) = LineReader().feed("y" * 10**6 + "\n")
    assert whole.text == "y" * MAX_LINE + " ..."


def test_a_progress_bar_that_goes_on_for_long_is_not_cut() -> None:
    reader = LineReader()
    for percent in range(1000):
        assert reader.feed(f"\r{percent}%" + "#" * 100) == []
    assert [line.text for line in reader.feed("\n")] == ["999%" + "#" * 100]


# ---- the file


def test_what_comes_from_now_on_across_rotations(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_bytes(b"before\n")
    followed = FollowedLog(log)
    assert followed.read() == ""
    with log.open("ab") as file:
        file.write("ä".encode()[:1])
    assert followed.read() == ""
    with log.open("ab") as file:
        file.write("ä".encode()[1:] + b"\xff\nlast of the old\n")
    log.rename(tmp_path / "engine.log.1")
    assert followed.read() == "ä\ufffd\nlast of the old\n"
    assert followed.read() == "", "between the rotation and the next line"
    log.write_text("first of the new\n")
    assert followed.read() == "first of the new\n"
    log.write_text("cut\n")
    assert followed.read() == "cut\n"
    log.unlink()
    assert followed.read() == ""
    log.write_text("made again\n")
    assert followed.read() == "made again\n"
    followed.close()
    followed.close()


def test_a_file_that_is_not_there_yet_is_read_from_its_start(tmp_path: Path) -> None:
    followed = FollowedLog(tmp_path / "engine.log")
    assert followed.read() == ""
    (tmp_path / "engine.log").write_text("first\n")
    assert followed.read() == "first\n"
    followed.close()
