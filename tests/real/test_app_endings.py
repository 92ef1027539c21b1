"""How apps end that use an engine: all ways to end, none leaves a word, a hang or a request behind."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.in_flight import running
from tests.support.processes import end_of, run_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)
ENDS: dict[str, tuple[int, str]] = {
    "chat": (0, ""),
    "async_chat": (0, ""),
    "read_half_a_stream": (0, ""),
    "stream_never_read": (0, ""),
    "async_stream_half_read": (0, ""),
    "loop_closed_without_shutdown_asyncgens": (0, ""),
    "client_of_a_closed_loop_dropped": (0, ""),
    "loops_never_closed": (0, ""),
    "loop_closed_with_a_stream_half_read": (0, ""),
    "chat_in_a_daemon_thread": (0, ""),
    "sys_exit_with_a_daemon_thread_in_a_chat": (3, ""),
    "thread_that_still_finishes_a_chat": (3, "True\nHello! How\n"),
    "atexit_before_the_import": (0, "Hello! How\n" * 3),
    "atexit_after_first_use": (0, "Hello! How\n" * 3),
    "atexit_never_used_before": (0, "Hello! How\n" * 3),
    "no_thread_can_be_started": (
        0,
        "no thread could be started for synchronous requests: can not start new thread\n",
    ),
    "start_in_atexit": (0, "EngineStartTimeoutError\n"),
    "start_in_atexit_after_first_use": (0, "EngineStartTimeoutError\n"),
}


@pytest.fixture
def engine(quiet_engine: Engine) -> Engine:
    return quiet_engine


@pytest.mark.parametrize(("name", "expected"), ENDS.items(), ids=ENDS.keys())
def test_an_app_ends_without_a_word(
    tiny_chat: dict[str, Any], engine: Engine, name: str, expected: tuple[int, str]
) -> None:
    assert end_of(run_app("endings", json.dumps(tiny_chat), name)) == (*expected, "")


@pytest.mark.parametrize("name", ["fail_in_a_stream", "fail_in_an_async_stream", "fail_with_a_daemon_thread_in_a_chat"])
def test_an_app_that_fails_shows_its_own_error_only(tiny_chat: dict[str, Any], engine: Engine, name: str) -> None:
    status, out, err = end_of(run_app("endings", json.dumps(tiny_chat), name))
    assert (status, out) == (1, "")
    assert is_one_traceback(err, "ValueError: no"), err


def is_one_traceback(err: str, last_line: str) -> bool:
    start = "Traceback (most recent call last):\n"
    return err.startswith(start) and err.count(start) == 1 and err.endswith(f"\n{last_line}\n")


@pytest.mark.parametrize("name", ["chat_for_ever", "stream_for_ever", "async_chat_for_ever", "batches_for_ever"])
def test_ctrl_c_ends_an_app_and_its_request(tiny_chat: dict[str, Any], engine: Engine, name: str) -> None:
    app = run_app("endings", json.dumps(tiny_chat), name)
    try:
        wait_until(lambda: running(engine) > 0, 30, "the request to run")
        app.send_signal(signal.SIGINT)
    finally:
        status, out, err = end_of(app, 10)
    assert (status, out) == (-signal.SIGINT, ""), err
    if name.startswith("async"):  # asyncio shows the cancellation it turned into KeyboardInterrupt
        assert err.endswith("\nKeyboardInterrupt\n"), err
    else:
        assert is_one_traceback(err, "KeyboardInterrupt"), err
