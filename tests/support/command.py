"""The ``vllm-local`` command as a process of its own, with the settings of an engine as options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from shared_engine import Engine
from tests.support.paths import REPOSITORY

COMMAND = [sys.executable, "-m", "shared_engine.cli"]


def vllm_local(*arguments: str, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end.

    Args:
        text: what is piped in.
    """
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        input=text,
        check=False,
        timeout=90,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


def told(done: subprocess.CompletedProcess[str]) -> Any:
    """What it has printed with --json; it must have ended well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def given_to(engine: Engine) -> dict[str, Any]:
    """The settings that the engine was given."""
    return engine.settings.model_dump(exclude_unset=True, exclude={"api_key"})


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """The model, and an option for each other setting; the engine's own seed has none (``seed_of``)."""
    words = [str(settings["model"])]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif name not in ("model", "seed"):
            words += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def seed_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The variable for the engine's own seed."""
    return {"VLLM_SEED": str(settings["seed"])}
