"""Ray Serve LLM, from an environment of its own: `make test-ray` makes it."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared_engine.launch.interpreter import find_interpreter
from tests.support.paths import REPOSITORY
from tests.support.plain_server import free_port, running, wait_for
from tests.support.processes import APPS

RAY = Path(os.environ.get("RAY_VENV", REPOSITORY / ".venv-ray"))
END_S = 60.0


@contextmanager
def ray_serve(models: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[str]:
    """Models by their folders, each with vLLM's settings, on one replica each; the URL of the ingress, when all answer.

    vLLM is the engine's own: Ray's would be CUDA's.
    """
    engine = Path(find_interpreter(None).path).parent.parent
    packages = sysconfig.get_path("purelib", "venv", {"base": str(engine), "platbase": str(engine)})
    log, port = folder / "ray.log", free_port()
    short = tempfile.mkdtemp(
        prefix="vlr-", dir="/tmp"
    )  # Unix sockets are in it, whose paths have 107 characters at most
    asked = {"folder": short, "port": port, "models": {name: (name, settings) for name, settings in models.items()}}
    command = [str(RAY / "bin" / "python"), str(APPS / "ray_serve_llm.py"), json.dumps(asked)]
    environment = {"PYTHONPATH": packages, "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    try:
        with running(command, log, environment, END_S) as process:
            wait_for(lambda: "\nserving\n" in log.read_text(errors="replace"), process, log)
            yield f"http://127.0.0.1:{port}"
    finally:
        shutil.rmtree(short, ignore_errors=True)
