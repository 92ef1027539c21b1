"""``vllm-local pull``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from shared_engine.cli.engine_arguments import add_engine_arguments, settings_of
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, size
from shared_engine.cli.terminal import can_draw
from shared_engine.errors import FetchError, SettingsError
from shared_engine.launch.fetching import OFFLINE_VARIABLE, fetch, is_offline
from shared_engine.machine.home import expanded
from shared_engine.settings import EngineSettings

EXAMPLES = (
    "vllm-local pull Qwen/Qwen3-4B",
    "vllm-local pull Qwen/Qwen3-4B --revision v1.0",
    "vllm-local pull Qwen/Qwen3-4B --download-dir /data/models",
)
INTERRUPTED = "what has come stays: run the same command again to go on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="an object: the model, its folder, its size")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    if settings.model is None or settings.is_remote:
        raise SettingsError("pull fetches a model to this machine: name its hub id, without base_url")
    if os.path.exists(expanded(settings.model)):
        raise SettingsError(f"model = {settings.model!r} is on this disk already: pull takes an id on the hub")
    began, bar = time.monotonic(), _Bar(settings.model)
    if is_offline():
        folder, words = _here(settings), f"as it was: {OFFLINE_VARIABLE} is set, so the hub was not asked"
    else:
        try:
            folder = fetch(settings, bar.show)
        finally:
            bar.close()
        words = f"here after {time.monotonic() - began:.1f} s, {size(bar.total)}"
    if arguments.json:
        print(as_json({"model": settings.model, "folder": str(folder), "bytes": bar.total}))
    else:
        print(f"{settings.model} is {words}: {folder}")
    return DONE


def _here(settings: EngineSettings) -> Path:
    folder = settings.model_folder()
    if folder is None:
        raise FetchError(
            f"{settings.model} is not on this disk, and {OFFLINE_VARIABLE} is set: unset it to ask the hub"
        )
    return folder


class _Bar:
    """How much has come, on a terminal."""

    def __init__(self, model: str) -> None:
        self.total: int | None = None
        self._name = model.rpartition("/")[2]
        self._bar: Any = None

    def show(self, here: int, total: int) -> None:
        self.total = total
        if self._bar is None and can_draw(sys.stderr):
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(total=total, initial=here, desc=self._name, unit="B", unit_scale=True, leave=False)
        if self._bar is not None:
            self._bar.update(here - self._bar.n)
            if here >= total:  # tqdm may have drawn too short a time ago
                self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
