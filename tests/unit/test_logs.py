"""The app's logging: one tree, its level, JSON lines, and what of it is an app's own business."""

from __future__ import annotations

import ast
import functools
import io
import json
import logging
import logging.config
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import langchain_vllm_local
import llama_index_vllm_local
from shared_engine import Engine, InvalidInputError, ServerUnreachableError
from shared_engine.logs import TREE, JsonFormatter, setup
from shared_engine.request import sending
from shared_engine.request.log_forwarding import forward_log, stop_forwarding
from tests.support.paths import REPOSITORY

FOLDERS = ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local")


@contextmanager
def an_app() -> Iterator[None]:
    """Logging as an app has it that configured none: without pytest's handlers. What is changed is undone."""
    tree, root = logging.getLogger(TREE), logging.root
    before = (tree.level, tree.handlers, root.level, root.handlers)
    tree.handlers, root.handlers = [], []
    try:
        yield
    finally:
        tree.level, tree.handlers, root.level, root.handlers = before
        for logger in root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.disabled = False
        root.manager._clear_cache()  # type: ignore[attr-defined]


def unconfigured(test: Callable[..., None]) -> Callable[..., None]:
    """The test runs in such an app."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        with an_app():
            test(*arguments, **fixtures)

    return run


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def speak() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger("shared_engine.request").log(level, "number %d", level)


# ---- one tree


@pytest.mark.slow
def test_every_logger_is_of_the_tree() -> None:
    """By name, or by a module's own name."""
    found = 0
    for path in (path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger"):
                name = ast.unparse(node.args[0])
                is_in_tree = name in ("'shared_engine'", "TREE") or name.startswith("f'{TREE}.")
                is_own = name == "__name__" and path.is_relative_to(REPOSITORY / "shared_engine")
                is_vllms = name == "'vllm'" and path.parent.name == "direct"  # where it runs in the app's process
                assert is_in_tree or is_own or is_vllms or path.name == "logs.py", (path, name)
                found += 1
    assert found > 8


@unconfigured
def test_nobody_sees_more_or_less_of_an_app_that_configured_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    speak()
    assert lines(capsys) == ["number 30"], "as of any library: Python's own last resort"


# ---- setup


@unconfigured
def test_setup_shows_lines_of_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    setup("INFO")
    setup("info", "text")
    speak()
    info, warning = lines(capsys)
    assert info.startswith("INFO ")
    assert info.endswith(" shared_engine.request: number 20")
    assert warning.endswith("number 30")


@unconfigured
def test_setup_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    setup(logging.WARNING, "json")
    speak()
    (line,) = lines(capsys)
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {"level": "WARNING", "logger": "shared_engine.request", "message": "number 30"}


@unconfigured
def test_an_apps_own_handlers_get_the_lines_and_nothing_comes_twice(capsys: pytest.CaptureFixture[str]) -> None:
    setup("INFO")
    stream = io.StringIO()
    logging.basicConfig(stream=stream, format="%(message)s")  # later than setup: root has had no handler yet
    speak()
    assert stream.getvalue() == "number 20\nnumber 30\n"
    assert lines(capsys) == []


@unconfigured
def test_a_handler_of_the_tree_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    setup("INFO")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.getLogger(TREE).addHandler(handler)
    speak()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["number 20", "number 30"]
    assert lines(capsys) == []


@unconfigured
def test_the_environment_is_what_setup_goes_by(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("VLLM_LOCAL_LOG_LEVEL", "debug")
    monkeypatch.setenv("VLLM_LOCAL_LOG_FORMAT", "json")
    setup()
    speak()
    assert [json.loads(line)["level"] for line in lines(capsys)] == ["DEBUG", "INFO", "WARNING"]
    setup("WARNING", "text")
    speak()
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("arguments", [{"level": "loud"}, {"level": True}, {"level": 0}, {"format": "xml"}])
def test_what_setup_refuses(arguments: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be"):
        setup(**arguments)
    assert logging.getLogger(TREE).level == logging.NOTSET


@unconfigured
def test_with_no_stderr_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    setup("INFO")
    monkeypatch.setattr(sys, "stderr", None)
    speak()


# ---- the environment, on import

IN_A_PROCESS = """
import logging, shared_engine
log = logging.getLogger("shared_engine")
log.info("a line")
log.warning("a warning")
"""


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, ["a warning"]),
        ({"VLLM_LOCAL_LOG_LEVEL": "INFO"}, ["INFO * shared_engine: a line", "WARNING * shared_engine: a warning"]),
        ({"VLLM_LOCAL_LOG_LEVEL": "error"}, []),
        ({"VLLM_LOCAL_LOG_FORMAT": "json"}, ['{"time": "*", "level": "WARNING", "logger": "shared_engine", *']),
        ({"VLLM_LOCAL_LOG_LEVEL": "loud"}, ["VLLM_LOCAL_LOG_LEVEL = 'loud' is ignored: it must be *", "a warning"]),
        ({"VLLM_LOCAL_LOG_FORMAT": "xml"}, ["VLLM_LOCAL_LOG_FORMAT = 'xml' is ignored: it must be *", "a warning"]),
        ({"VLLM_LOCAL_LOG_LEVEL": ""}, ["a warning"]),
    ],
)
def test_what_the_environment_asks_for(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: list[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", IN_A_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    found = done.stderr.splitlines()
    assert len(found) == len(told), found
    for line, wanted in zip(found, told, strict=True):
        begin, _, end = wanted.partition("*")
        assert line.startswith(begin), line
        assert "*" in end or line.endswith(end), line


# ---- an app's dictConfig


def configured(formatter: str = "plain", **more: Any) -> io.StringIO:
    stream = io.StringIO()
    handler = {"class": "logging.StreamHandler", "stream": stream, "formatter": formatter}
    logging.config.dictConfig(
        {
            "version": 1,
            "formatters": {"plain": {"format": "%(message)s"}, "json": {"()": "shared_engine.logs.JsonFormatter"}},
            "handlers": {"all": handler},
            "root": {"level": "INFO", "handlers": ["all"]},
            **more,
        }
    )
    return stream


@unconfigured
def test_a_dict_config_that_silences_what_was_there_keeps_vllms_log_that_was_asked_for(tmp_path: Path) -> None:
    log, wanted = tmp_path / "engine.log", logging.Formatter()
    logging.getLogger("shared_engine.vllm").debug("there already")
    forward_log(log, "tiny", wanted)
    stream = configured()
    assert logging.getLogger("shared_engine.vllm").disabled
    log.write_text("INFO: one\n")
    stop_forwarding(log, wanted)
    assert stream.getvalue() == "one\n"


@unconfigured
def test_the_formatter_can_be_named_in_a_dict_config() -> None:
    stream = configured(formatter="json", disable_existing_loggers=False)
    speak()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["number 20", "number 30"]


@unconfigured
def test_a_dict_config_that_keeps_loggers_or_names_the_tree_hears_it() -> None:
    speak()  # there are loggers already
    for more in ({"disable_existing_loggers": False}, {"loggers": {"shared_engine": {"level": "INFO"}}}):
        stream = configured(**more)
        speak()
        assert stream.getvalue() == "number 20\nnumber 30\n", more


# ---- JSON


@unconfigured
def test_all_that_a_record_carries_is_in_its_line() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("shared_engine.x")
    logger.addHandler(handler)
    try:
        try:
            raise KeyError("gone")
        except KeyError:
            logger.exception("two\nlines %s", "ä", extra={"engine": "tiny", "path": Path("/x"), "level": "mine"})
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["message"], told["level"], told["engine"], told["path"]) == ("two\nlines ä", "ERROR", "tiny", "/x")
    assert told["exception"].endswith("KeyError: 'gone'")
    assert sorted(told) == ["engine", "exception", "level", "logger", "message", "path", "time"]


# ---- secrets


@unconfigured
def test_no_key_is_in_any_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TOLD_FROM_S", 0.0)
    logging.root.addHandler(caplog.handler)
    caplog.set_level(logging.DEBUG)
    settings = {
        "api_key": "letmein-key",
        "default_headers": {"X-Token": "letmein-header"},
        "proxy": "http://me:letmein-proxy@127.0.0.1:9",
    }
    for more in (settings, {"basic_auth": "me:letmein-basic"}):
        engine = Engine(base_url="http://127.0.0.1:9/v1", model="m", max_retries=1, **more)
        with pytest.raises(ServerUnreachableError):
            engine.chat([{"role": "user", "content": "Hello"}])
        engine.close()
    assert "tried again" in caplog.text
    assert "letmein" not in caplog.text
    assert not any("letmein" in str(vars(record)) for record in caplog.records)


@unconfigured
def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "logging.md").read_text()
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), "docs/logging.md", "exec"), {})
    (line,) = lines(capsys)
    assert json.loads(line)["message"] == "configured"


# ---- verbose


@pytest.mark.parametrize(
    "kind",
    [
        Engine,
        langchain_vllm_local.ChatVLLM,
        langchain_vllm_local.VLLM,
        langchain_vllm_local.VLLMEmbeddings,
        llama_index_vllm_local.VLLM,
        llama_index_vllm_local.VLLMEmbedding,
    ],
)
def test_verbose_is_a_setting_of_every_class(kind: Any) -> None:
    """Of LangChain's models, too, which have a field of this name."""
    for value in (True, False):
        made = kind(model="org/name", verbose=value)
        assert getattr(made, "engine", made).settings.verbose is value
    made = kind(model="org/name")
    assert getattr(made, "engine", made).settings.verbose is False
