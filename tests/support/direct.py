"""Apps whose own Python has vLLM, for mode="direct": run by the engine's Python, with what a framework needs beside it
from this one's packages.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

from shared_engine.launch.interpreter import find_interpreter
from tests.support.paths import REPOSITORY
from tests.support.processes import APPS


def in_vllms_python(script: Path, *arguments: str) -> list[str]:
    """The command that runs a script as users run one: by its path, as ``__main__``."""
    return [find_interpreter(None).path, str(script), *arguments]


def variables_beside() -> dict[str, str]:
    """What such a script finds this project and its packages by."""
    return {"PYTHONPATH": str(REPOSITORY), "PACKAGES_BESIDE": sysconfig.get_paths()["purelib"]}


def run_in_vllms_python(script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        in_vllms_python(script, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **variables_beside()},
    )


def run_direct_app(name: str, *arguments: str) -> subprocess.Popen[str]:
    """One of tests/support/apps/."""
    return run_in_vllms_python(APPS / f"{name}.py", *arguments)
