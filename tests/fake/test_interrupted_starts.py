"""Ctrl-C at any moment of a start: the caller is back at once, and the start goes on for the others."""

from __future__ import annotations

import subprocess
import time

from shared_engine import EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import wait_for
from tests.support.engines import settings_of
from tests.support.processes import end_of, press_ctrl_c_until_back, run_app

# Some hundredths of a second, but where others have the processor. What is not interrupted waits for ever here.
BACK_S = 4.0


def test_ctrl_c_leaves_a_start_at_once(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_at": "weights"}, start_timeout_s=60)
    app = run_app("interrupted_starts", settings_of(engine), stdin=subprocess.PIPE)
    assert app.stdin and app.stdout
    assert app.stdout.readline() == "is here\n"
    for way in ("chat", "stream", "batch", "warmup", "achat"):
        for delay_s in (0.0, 0.02, 0.1, 0.4):
            app.stdin.write(f"{way}\n")
            app.stdin.flush()
            assert app.stdout.readline() == "begins\n"
            time.sleep(delay_s)
            assert press_ctrl_c_until_back(app) < BACK_S, (way, delay_s)
    wait_for(engine, EngineState.STARTING)
    assert engine.status().starts == 1
    assert end_of(app, 20)[0] == 0
