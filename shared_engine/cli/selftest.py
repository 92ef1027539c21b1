"""The smoke test: vLLM is really imported, an engine really starts, writes some tokens, and ends.

An engine that runs already is used and left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from shared_engine.cli.tiny_model import tiny_settings, write_tiny_model
from shared_engine.engine import Engine
from shared_engine.errors import EngineBusyError
from shared_engine.launch.interpreter import Interpreter
from shared_engine.launch.spec import engine_spec, launch_environment
from shared_engine.launcher import LAUNCHER
from shared_engine.runtime.directory import runtime_dir
from shared_engine.runtime.launcher_messages import Event, read_event
from shared_engine.runtime.record import is_supervised
from shared_engine.settings import EngineSettings

IMPORT_TIMEOUT_S = 300.0
SMOKE_TOKENS = 10
SMOKE_IDLE_TTL_S = 30.0  # should this process be killed, its engine ends by itself


def import_vllm(interpreter: Interpreter) -> tuple[subprocess.CompletedProcess[bytes], list[Event]]:
    """Have the launcher import vLLM in the environment an engine would have, and exit; its end, and its events.

    Raises:
        OSError: the interpreter can't be run.
        subprocess.TimeoutExpired: it took longer than IMPORT_TIMEOUT_S.
    """
    read_fd, write_fd = os.pipe()
    with open(read_fd) as events:
        try:
            done = subprocess.run(
                [interpreter.path, "-u", str(LAUNCHER), "--events-fd", str(write_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_fd,),
                env={**launch_environment(os.environ), "VLLM_NO_USAGE_STATS": "1"},
                timeout=IMPORT_TIMEOUT_S,
                check=False,
            )
        finally:
            os.close(write_fd)
        return done, [event for line in events if (event := read_event(line)) is not None]


class SmokeTest:
    """One engine, to be tried out once.

    Args:
        model: as the user's apps name it, to run as they have it; None: a tiny one with random weights.
        folder: an empty one, for the tiny model; it must stay until ``run`` has returned.

    Raises:
        VLLMError: a setting is wrong, or there is no Python with vLLM.
    """

    def __init__(self, model: str | None, folder: Path) -> None:
        self._is_tiny = model is None
        self._what = "a tiny model with random weights" if model is None else model
        # The user's own settings, so that what is tried is what the apps will use; but it does not stay.
        chosen: dict[str, Any] = {"model": model, "mode": "local", "idle_ttl_s": SMOKE_IDLE_TTL_S, "standby": False}
        if model is None:
            write_tiny_model(folder)
            chosen |= {"model": str(folder), **tiny_settings()}
        self._engine = Engine(EngineSettings(**chosen))
        self._directory = runtime_dir(engine_spec(self._engine.settings).key)
        self._is_ours = not is_supervised(self._directory)

    @property
    def log(self) -> Path:
        return self._directory.log

    def run(self) -> str:
        """Say how it went. An engine started here is gone when this ends, however it ends.

        Raises:
            VLLMError: the engine did not start or did not answer; its log stays.
        """
        is_done = False
        try:
            report = self._try_out()
            is_done = True
        finally:
            if self._is_ours:
                self._end(force=self._is_tiny or not is_done)
        if self._is_tiny:
            shutil.rmtree(self._directory.path, ignore_errors=True)
        return report

    def _try_out(self) -> str:
        self._engine.warmup()
        began = time.monotonic()
        result = self._engine.generate("one two three", max_tokens=SMOKE_TOKENS, extra_body={"ignore_eos": True})
        seconds = time.monotonic() - began
        start = self._engine.status().start_s or 0.0
        how = f"started in {start:.1f} s" if self._is_ours else "was running already"
        return f"{self._what}: {how}, {result.usage.completion_tokens} tokens in {seconds:.2f} s"

    def _end(self, *, force: bool) -> None:
        with contextlib.suppress(EngineBusyError):  # another app has come to use it: it is that one's from now on
            self._engine.shutdown(timeout=0.0, force=force)
