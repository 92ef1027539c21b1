"""The Python files of vLLM's CUDA wheels, over the dependencies of the engine's environment that is installed.

So they can be looked at and, with a device that is only named, their command line can be parsed: without a GPU, and
without the 8 GiB that the CUDA build takes. What is downloaded (330 MB a wheel) is kept in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from shared_engine.launch.interpreter import find_interpreter

# Of newer releases, and light: the dependencies that the installed environment may lack.
EXTRA_PACKAGES = ("orjson",)
RESULT = "RESULT "

# Runs in the overlay: parses each command line of stdin as `vllm serve` does, and prints what is wrong with it.
PARSE = f"""
import contextlib, importlib, io, json, sys
import vllm.platforms as platforms
from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum

class Cuda(Platform):
    _enum = PlatformEnum.CUDA
    device_name = device_type = "cuda"
    dispatch_key = "CUDA"

    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(9, 0)

platforms._current_platform = Cuda()  # before anything asks which it is
cli_args = importlib.import_module(sys.argv[1])
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = cli_args.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
for line in sys.stdin:
    said, wrong = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(said):
            cli_args.validate_parsed_serve_args(parser.parse_args(json.loads(line)))
    except SystemExit:
        wrong = said.getvalue().strip().splitlines()[-1]
    except Exception as exc:
        wrong = f"{{type(exc).__name__}}: {{exc}}"
    print({RESULT!r} + json.dumps(wrong), flush=True)
"""


class CudaWheel:
    """One release. Constructing it downloads it, unless that was done before."""

    def __init__(self, version: str) -> None:
        self.version = version
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self._folder = Path(cache) / "vllm-local" / "cuda-wheels" / version
        self._files = self._folder / "files"
        self.sources = self._files / "vllm"
        if not self._files.exists():
            self._download()

    @property
    def metadata(self) -> str:
        """Requirements and all else."""
        return (self._files / f"vllm-{self.version}.dist-info" / "METADATA").read_text()

    def has_module(self, name: str) -> bool:
        path = self._files.joinpath(*name.split("."))
        return path.with_name(f"{path.name}.py").exists() or (path / "__init__.py").exists()

    def source_of(self, module: str) -> str:
        path = self._files.joinpath(*module.split("."))
        file = path.with_name(f"{path.name}.py")
        return (file if file.exists() else path / "__init__.py").read_text()

    def _download(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        where = ["--no-deps", "--only-binary", ":all:", "--dest", str(self._folder)]
        subprocess.run([*pip, "download", *where, f"vllm=={self.version}"], check=True)
        (wheel,) = self._folder.glob("*.whl")
        unpacked = self._folder / "unpacked"
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".py") or ".dist-info/" in name]
            archive.extractall(unpacked, names)
        wheel.unlink()
        unpacked.rename(self._files)  # last: what is there is whole

    def make_environment(self, folder: Path) -> str:
        """An environment with these files in place of the installed vLLM's; return its interpreter."""
        installed = Path(find_interpreter(None).path)
        packages = next((installed.parent.parent / "lib").glob("python3*/site-packages"))
        site = folder / "lib" / packages.parent.name / "site-packages"
        site.mkdir(parents=True)
        extra = self._folder / "extra"
        if not extra.exists():
            command = [str(installed), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
            subprocess.run([*command, "--no-deps", "--target", str(extra), *EXTRA_PACKAGES], check=True)
        for entry in (*self._files.iterdir(), *extra.iterdir(), *packages.iterdir()):
            if entry.parent == packages and entry.name.startswith("vllm"):
                continue
            if not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
        base = installed.resolve()
        (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(base)
        return str(folder / "bin" / "python")


def parse(python: str, cli_args: str, command_lines: Sequence[Sequence[str]]) -> list[str | None]:
    """What vLLM's own parser says against each command line; None where it takes it.

    Args:
        python: of an environment made by ``CudaWheel.make_environment``.
        cli_args: the module that has the parser.
    """
    lines = "".join(json.dumps(list(argv)) + "\n" for argv in command_lines)
    command = [python, "-c", PARSE, cli_args]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=300)
    results = [json.loads(line.removeprefix(RESULT)) for line in done.stdout.splitlines() if line.startswith(RESULT)]
    assert len(results) == len(command_lines), done.stderr[-3000:]
    return results
