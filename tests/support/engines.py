"""Engines of a test: made, passed on to other processes, and gone when the test ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared_engine import Engine
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.record import is_supervised, read_record
from tests.support.paths import TINY_CHAT
from tests.support.processes import any_exists, process_exists
from tests.support.waiting import wait_until

LEAVE_S = 20.0


@contextmanager
def ended_engines() -> Iterator[list[Engine]]:
    """A list; the engines that were put into it are gone at the end."""
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.shutdown(force=True)


def end_engines(root: Path) -> None:
    """Ask every supervisor below ``root`` to leave, and see it gone."""
    records = {file: read_record(file) for file in root.glob("*/record.json") if is_supervised(RuntimeDir(file.parent))}
    pids = [record.supervisor_pid for record in records.values() if record]  # of the others it may be another process
    for pid in filter(process_exists, pids):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not any_exists(pids), LEAVE_S, "supervisors to leave")


def settings_of(engine: Engine) -> str:
    """As JSON, for another process that makes the same engine: ``Engine(**json.loads(...))``."""
    return json.dumps(engine.settings.model_dump(exclude_unset=True, exclude={"api_key"}))


def copy_of_tiny_chat(folder: Path, **config: object) -> str:
    """A model folder like tiny_chat's, with other values in its config."""
    names = [path.name for path in TINY_CHAT.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")]
    for name in names:
        shutil.copy(TINY_CHAT / name, folder / name)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return str(folder)
