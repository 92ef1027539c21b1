"""The engine's log as its supervisor writes it: whole lines, levels, and no secrets."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

import pytest

from shared_engine.runtime import engine_log
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.log_level import chosen_level, level_of
from shared_engine.runtime.progress import ProgressReader, StartPhase
from shared_engine.runtime.redacted import redacted
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.engine_process import EngineProcess, StartFailedError

KEY = "hf_" + "aB3" * 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def notes(path: Path) -> list[tuple[str, ...]]:
    return re.findall(r"^[\d-]{10} [\d:]{8} (\w+) vllm-local supervisor: (.*)$", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("level", "written"),
    [
        (logging.DEBUG, ["DEBUG", "INFO", "WARNING", "CRITICAL"]),
        (logging.INFO, ["INFO", "WARNING", "CRITICAL"]),
        (logging.WARNING, ["WARNING", "CRITICAL"]),
        (logging.CRITICAL, ["CRITICAL"]),
    ],
)
def test_notes_below_the_level_are_left_out_and_vllms_lines_never(path: Path, level: int, written: list[str]) -> None:
    log = EngineLog(path, level)
    log.feed(b"DEBUG of vLLM\n")
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
        log.note("words", each)
    assert [name for name, _ in notes(path)] == written
    assert path.read_text().startswith("DEBUG of vLLM\n")


def test_lines_are_written_when_they_are_whole(path: Path) -> None:
    log = EngineLog(path)
    log.feed(b"one\ntw")
    assert path.read_bytes() == b"one\n"
    log.feed(b"o\r\nthree\xff\n\r 10%|#\r 20%")
    assert path.read_bytes() == b"one\ntwo\r\nthree\xff\n\r 10%|#\r"
    log.feed(b"\r")
    log.feed(b"\n")
    assert path.read_bytes().endswith(b" 20%\r\n")
    assert log.lines() == ["one", "two", "three\ufffd", "\r 10%|#\r 20%"]


def test_a_note_begins_a_line_and_what_is_not_whole_stands_before_it(path: Path) -> None:
    log = EngineLog(path)
    log.feed(b"Run the code of this model? [y/N] ")
    log.note("starting -> failed")
    first, second = path.read_text().splitlines()
    assert first == "Run the code of this model? [y/N] "
    assert second.endswith("supervisor: starting -> failed")


def test_a_line_without_end_is_written_in_pieces(path: Path) -> None:
    log = EngineLog(path)
    for _ in range(10):
        log.feed(b"x" * 5000)
    assert path.stat().st_size > 50_000 - engine_log.MAX_LINE_BYTES - 5000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [3, 12, 30])
def test_a_secret_that_comes_in_two_pieces_is_none_in_the_file(path: Path, cut: int) -> None:
    log = EngineLog(path)
    line = f"non-default args: {{'hf_token': '{KEY}', 'max_model_len': 2048}}\n".encode()
    at = line.index(b"hf_a") + cut
    log.feed(line[:at])
    log.feed(line[at:])
    log.note(f"can't log in with {KEY}")
    assert "aB3" not in path.read_text()
    assert "'max_model_len': 2048" in path.read_text()
    assert log.tail() == ("non-default args: {'hf_token': '***', 'max_model_len': 2048}",)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {KEY}.", "token ***."),
        ("sk-proj-abcdefghijklmnopqrst", "***"),
        ("Authorization: Bearer abc.def-123, next", "Authorization: Bearer ***, next"),
        ("http://me:pass@proxy:3128/x and http://host/y", "http://***@proxy:3128/x and http://host/y"),
        ("api_key='short', seed=0", "api_key='***', seed=0"),
        ('{"api_key": "short"}', '{"api_key": "***"}'),
        ("OPENAI_API_KEY=short", "OPENAI_API_KEY=***"),
        ("vllm serve --hf-token short --port 1", "vllm serve --hf-token *** --port 1"),
        ("vllm serve --api-key=short", "vllm serve --api-key=***"),
        ("'hf_token': None, 'password': None", "'hf_token': None, 'password': None"),
        (
            "max_tokens: 16, tokenizer='org/name', hf_tokenizer=3",
            "max_tokens: 16, tokenizer='org/name', hf_tokenizer=3",
        ),
        ("task-4711 risk-abcdefghijklmnopqrst", "task-4711 risk-abcdefghijklmnopqrst"),
        ("of the environment: letmein-please", "of the environment: ***"),
        ("/home/me/token stays, as false does", "/home/me/token stays, as false does"),
    ],
)
def test_what_is_a_secret(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("MY_PASSWORD", "letmein-please")
    monkeypatch.setenv("MY_PASSWORD_2", "letmein-")  # a part of the other
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redacted(text) == shown


async def test_the_secrets_of_the_caller_whose_environment_vllm_has_are_not_written(tmp_path: Path, path: Path) -> None:
    """The supervisor has that of the caller which started it; its launcher may have another's."""
    spec, log = EngineSpec((), "/no/python", "0.32.0", "org/model"), EngineLog(path)
    process = EngineProcess(RuntimeDir(tmp_path), spec, log, ProgressReader(StartPhase.IMPORT))
    with pytest.raises(StartFailedError, match="/no/python can't be run"):
        await process.preload({"PROXY_PASSWORD": "letmein-please"}, 10)
    log.feed(b"no answer to letmein-please\n")
    log.note("it said letmein-please")
    assert "letmein" not in path.read_text()
    assert log.tail() == ("no answer to ***",)


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("DEBUG", 10),
        ("info", 20),
        (" Warn ", 30),
        ("WARNING", 30),
        ("fatal", 50),
        ("15", 15),
        ("", None),
        ("loud", None),
        ("NOTSET", None),
        ("-1", None),
        ("Level 15", None),
    ],
)
def test_levels(text: str, level: int | None) -> None:
    assert level_of(text) == level
    assert chosen_level({"VLLM_LOCAL_LOG_LEVEL": text}) == level
    assert chosen_level({}) is None
