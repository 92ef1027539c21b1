"""Ctrl-C in the first moments of a large batch and later: the caller is back, and vLLM's requests end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.in_flight import running
from tests.support.processes import end_of, press_ctrl_c_until_back, run_app
from tests.support.waiting import wait_until

DELAYS_S = [0.0, 0.05, 0.2, 1.0]
# A second anywhere else (tests/unit/test_interrupts.py); here vLLM has both of two cores.
BACK_S = 3.0
ABORTED_S = 10.0


@pytest.fixture
def app(tiny_chat: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    app = run_app("interrupted_batches", json.dumps(tiny_chat), stdin=subprocess.PIPE)
    yield app
    end_of(app, 10)


@pytest.mark.long
@pytest.mark.timeout(200)
def test_ctrl_c_at_any_moment_of_a_batch(app: subprocess.Popen[str], quiet_engine: Engine) -> None:
    seen: list[tuple[float, str, float]] = []
    assert app.stdin and app.stdout
    for way in json.loads(app.stdout.readline()):
        for delay_s in DELAYS_S:
            app.stdin.write(f"{way}\n")
            app.stdin.flush()
            assert app.stdout.readline() == "begins\n"
            time.sleep(delay_s)
            seen.append((press_ctrl_c_until_back(app), way, delay_s))
            wait_until(lambda: running(quiet_engine) == 0, ABORTED_S, f"{way} to end, left after {delay_s:g} s")
    assert max(seen) < (BACK_S,), sorted(seen)[-5:]
