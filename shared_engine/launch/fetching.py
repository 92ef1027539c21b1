"""Fetches a model from the hub before it is asked for, in the engine's own Python, which has huggingface_hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_engine.errors import FetchError
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launch.spec import launch_environment
from shared_engine.launcher import MODEL_FETCHER
from shared_engine.machine.hub_cache import bytes_of_download, cached_model
from shared_engine.settings import EngineSettings

LOOK_S = 0.2
END_S = 5.0
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"


def is_offline() -> bool:
    """As huggingface_hub reads its variable."""
    return os.environ.get(OFFLINE_VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_config(settings: EngineSettings) -> dict[str, Any]:
    """The model's config.json, as the hub has it now. Nothing of the model is kept on the disk.

    Raises:
        FetchError: the hub does not have it, does not give it, or can't be reached.
        EngineNotInstalledError: there is no Python with vLLM, and so none with huggingface_hub.
    """
    command = [find_interpreter(settings.python).path, str(MODEL_FETCHER), str(settings.model), settings.revision or ""]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=_environment(),
        start_new_session=True,
        check=False,
    )
    told = json.loads(done.stdout or "{}")
    if "config" not in told:
        last = done.stderr.strip().rpartition("\n")[2]
        raise FetchError(f"{settings.model}: {told.get('refusal') or last or f'exit code {done.returncode}'}")
    config = told["config"]
    return config if isinstance(config, dict) else {}


def fetch(settings: EngineSettings, on_progress: Callable[[int, int], object]) -> Path:
    """Fetch what vLLM needs of the model; return its folder. What is here already is not fetched again.

    Args:
        on_progress: called with the bytes that are here, and those of all; again and again until the end.

    Raises:
        FetchError: the hub does not have it, does not give it, or can't be reached; the disk is full.
        EngineNotInstalledError: there is no Python with vLLM, and so none with huggingface_hub.
    """
    model = str(settings.model)
    interpreter = find_interpreter(settings.python)
    command = [interpreter.path, str(MODEL_FETCHER), model, settings.revision or "", settings.download_dir or ""]
    told: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,  # a Ctrl-C is for this process, which ends that one
        )
        try:
            reader = threading.Thread(target=_read, args=(child, told), daemon=True)
            reader.start()
            while reader.is_alive():
                reader.join(LOOK_S)
                if "bytes" in told:
                    on_progress(min(_here(settings), told["bytes"]), told["bytes"])
            child.wait()
        finally:
            _end(child)
        if "folder" in told:
            return Path(told["folder"])
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise FetchError(f"{model} could not be fetched: {told.get('refusal') or last or f'exit code {child.returncode}'}")


def _environment() -> dict[str, str]:
    return {**launch_environment(os.environ), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def _read(child: subprocess.Popen[bytes], told: dict[str, Any]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        told |= json.loads(line)


def _here(settings: EngineSettings) -> int:
    places = {cached_model(str(settings.model), os.environ, each) for each in (None, settings.download_dir)}
    found = [bytes_of_download(place, settings.revision) for place in places]
    return sum(each[0] for each in found if each is not None)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.stdout is not None:
        child.stdout.close()
