"""Looks for what would keep an engine from working, and says what to do; at the end really starts one.

A check changes nothing that lasts. Values of the environment that may be secret never get into one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from shared_engine.cli.selftest import IMPORT_TIMEOUT_S, SmokeTest, import_vllm
from shared_engine.errors import VLLMError
from shared_engine.launch.install import detect_build
from shared_engine.launch.interpreter import INSTALL_COMMAND, Interpreter, find_interpreter
from shared_engine.launch.spec import total_memory
from shared_engine.launcher.launcher import FORK_VERSIONS
from shared_engine.machine.gpu import GIB, nvidia_smi, read_memory
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir, runtime_root
from shared_engine.settings import ENVIRONMENT, EngineSettings

MIN_SHM_BYTES = 1 * GIB
MIN_RAM_BYTES = 4 * GIB
MIN_RUNTIME_BYTES = 100 << 20
MIN_CACHE_BYTES = 10 * GIB
NO_MODEL = "no/model"  # settings want one; nothing is looked up under this name


class Outcome(str, Enum):
    OK = "ok"
    WARN = "warn"  # works, or may work, but not well
    FAIL = "FAIL"  # no engine will start


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        check: what was looked at.
        detail: what was found.
        remedy: what to do; empty when all is well.
    """

    check: str
    outcome: Outcome
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "outcome": self.outcome.value.lower()}


def ok(check: str, detail: str) -> Finding:
    return Finding(check, Outcome.OK, detail)


def warn(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, Outcome.WARN, detail, remedy)


def fail(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, Outcome.FAIL, detail, remedy)


def diagnose(model: str | None, *, smoke: bool, say: Callable[[str], None] = lambda _: None) -> Iterator[Finding]:
    """Check after check. An engine that the smoke test started is gone when this ends, however it ends.

    Args:
        model: for the smoke test; None: VLLM_MODEL_PATH, else a tiny one with random weights, made for it.
        smoke: start an engine at the end.
        say: told what takes time, before it does.
    """
    for finding in _diagnose(model, smoke, say):
        yield Finding(finding.check, finding.outcome, redacted(finding.detail), redacted(finding.remedy))


def _diagnose(model: str | None, smoke: bool, say: Callable[[str], None]) -> Iterator[Finding]:
    try:
        settings = EngineSettings(mode="local", **_named(model))
    except VLLMError as exc:
        yield fail("settings", str(exc), "correct the setting, or the environment variable named")
        return
    interpreter, needed = check_interpreter(settings)
    yield needed
    if interpreter is not None:
        say("importing vLLM")
        needed = check_import(interpreter)
        yield needed
        yield check_fork(interpreter)
        yield check_build(interpreter)
    is_cpu = interpreter is not None and interpreter.build == "cpu"
    if not is_cpu:
        yield from check_gpus(settings)
    yield check_ram(is_cpu=is_cpu)
    yield check_shared_memory(settings)
    runtime = check_runtime_directory()
    yield runtime
    yield check_model_cache(settings)
    yield check_engines()
    yield check_leftovers()
    if smoke and Outcome.FAIL in (needed.outcome, runtime.outcome):
        yield fail("smoke test", "not done: no engine can start", "mend what failed above")
    elif smoke:
        say("starting an engine for the smoke test")
        yield check_smoke(None if settings.model == NO_MODEL else settings.model)


def _named(model: str | None) -> dict[str, Any]:
    if model is not None:
        return {"model": model}
    return {} if os.environ.get(ENVIRONMENT["model"]) else {"model": NO_MODEL}


# ---- vLLM


def check_interpreter(settings: EngineSettings) -> tuple[Interpreter | None, Finding]:
    """The Python that engines will run with."""
    check = "interpreter"
    try:
        found = find_interpreter(settings.python)
    except VLLMError as exc:
        return None, fail(check, str(exc), f"run `{INSTALL_COMMAND}`, or name a Python that has vLLM: VLLM_PYTHON")
    return found, ok(check, f"{found.path}: vLLM {found.version}, {found.build} build")


def check_import(interpreter: Interpreter) -> Finding:
    """Have the launcher import vLLM, in the environment an engine would have; it leaves at once."""
    check, began = "vLLM import", time.monotonic()
    try:
        done, said = import_vllm(interpreter)
    except subprocess.TimeoutExpired:
        return fail(check, f"not done after {IMPORT_TIMEOUT_S:g} s", "is the disk of the environment very slow?")
    except OSError as exc:
        return fail(check, f"{interpreter.path} can't be run: {exc.strerror}", f"run `{INSTALL_COMMAND}`")
    for event in said:
        if event["event"] == "preloaded":
            return ok(check, f"vLLM {event['version']} in {time.monotonic() - began:.1f} s")
        if event["event"] == "import_failed":
            return fail(check, str(event["error"]), f"run `{INSTALL_COMMAND}` (the environment is broken)")
    tail = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
    return fail(check, f"exit code {done.returncode}: {' '.join(tail)}", f"run `{INSTALL_COMMAND}`")


def check_fork(interpreter: Interpreter) -> Finding:
    """Whether this version's start was tried with forked processes."""
    check = "start path"
    if interpreter.build != "cpu":
        return ok(check, "plain (vLLM starts its own processes; only CPU builds fork)")
    if interpreter.version.startswith(FORK_VERSIONS):
        return ok(check, f"forked; tried with vLLM {interpreter.version}")
    tried = ", ".join(f"{version}x" for version in FORK_VERSIONS)
    return warn(
        check,
        f"plain: forking was tried with vLLM {tried}, not with {interpreter.version}",
        f"engines start about 15 s slower; run `{INSTALL_COMMAND}` for a version that was tried",
    )


def check_build(interpreter: Interpreter) -> Finding:
    """Whether the build of vLLM fits the machine."""
    machine = detect_build()
    if machine == interpreter.build:
        return ok("build", f"{machine}, as the machine")
    if machine == "cuda":
        detail = "the CPU build, on a machine with an NVIDIA GPU"
        return warn("build", detail, f"run `{INSTALL_COMMAND} --cuda` to use the GPU")
    detail = "the CUDA build, and nvidia-smi shows no GPU"
    return fail("build", detail, f"run `{INSTALL_COMMAND} --cpu`, or give this machine (or container) its GPU")


# ---- the machine


def check_gpus(settings: EngineSettings) -> Iterator[Finding]:
    """One finding for each GPU."""
    query = "--query-gpu=index,name,driver_version,memory.total,memory.free"
    for index, name, driver, total, free in nvidia_smi(query):
        detail = f"{index}: {name}, driver {driver}, {free} of {total} MiB free"
        with contextlib.suppress(ValueError):  # "[N/A]" where the GPU shares the machine's memory
            share = int(free) / max(1, int(total))
            if share < settings.gpu_memory_utilization:
                yield warn(
                    "GPU",
                    f"{detail}: less than gpu_memory_utilization = {settings.gpu_memory_utilization:g} of it",
                    "end what holds it (`vllm-local status`, `nvidia-smi`), or lower gpu_memory_utilization",
                )
                continue
        yield ok("GPU", detail)


def check_ram(*, is_cpu: bool) -> Finding:
    """RAM that is free, and what a container may have."""
    limit, physical = total_memory(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = _available_memory(limit)
    detail = f"{gib(available)} of {gib(limit)} free"
    if limit < physical:
        detail += f" (limited by the container; the machine has {gib(physical)})"
    if available >= MIN_RAM_BYTES:
        return ok("RAM", detail)
    need = "vLLM alone takes 2 GiB, the model and its KV cache come on top" if is_cpu else "weights pass through RAM"
    return warn("RAM", detail, f"close other programs or raise the container's limit: {need}")


def _available_memory(limit: int) -> int:
    """MemAvailable, or what the container has left, where that is less."""
    free = limit
    if (memory := read_memory().get("cpu")) is not None:
        free = min(free, memory.free)
    with contextlib.suppress(OSError, ValueError):
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)


def check_shared_memory(settings: EngineSettings) -> Finding:
    """vLLM's processes talk through /dev/shm."""
    check = "/dev/shm"
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError as exc:
        return fail(check, f"not there: {exc.strerror}", "mount a tmpfs on /dev/shm: vLLM's processes talk through it")
    detail = f"{gib(free)} of {gib(total)} free"
    if free >= MIN_SHM_BYTES:
        return ok(check, detail)
    remedy = "start the container with --shm-size=8g or --ipc=host"
    return (fail if settings.tensor_parallel_size > 1 and free < MIN_SHM_BYTES // 8 else warn)(check, detail, remedy)


def check_runtime_directory() -> Finding:
    """Whether an engine could have its folder: private, short enough, local, writable."""
    check, root = "runtime directory", runtime_root()
    is_new = not root.exists()
    trial = RuntimeDir(root / f"doctor{os.getpid():010d}")  # as long as a key
    try:
        trial.prepare()
        trial.log.write_bytes(b"x" * 4096)
        free = shutil.disk_usage(root).free
    except VLLMError as exc:
        return fail(check, str(exc), f"set {ROOT_VARIABLE} to a short path on a local disk")
    except OSError as exc:
        return fail(check, f"{root} can't be written: {exc.strerror}", f"make room, or set {ROOT_VARIABLE}")
    finally:
        shutil.rmtree(trial.path, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()
    if free < MIN_RUNTIME_BYTES:
        return warn(check, f"{root}: {gib(free)} free", f"make room: logs may get lost; or set {ROOT_VARIABLE}")
    return ok(check, f"{root}: private, local, {gib(free)} free")


def check_model_cache(settings: EngineSettings) -> Finding:
    """Where weights from the hub go."""
    check, folder = "model cache", Path(settings.download_dir or _hub_cache())
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        remedy = "set HF_HOME (or download_dir) to a folder you may write to, or use models that are folders"
        return warn(check, f"{folder} can't be written", remedy)
    free = shutil.disk_usage(there).free
    if free < MIN_CACHE_BYTES:
        return warn(check, f"{folder}: {gib(free)} free", "make room for weights, or set HF_HOME to a larger disk")
    return ok(check, f"{folder}: {gib(free)} free")


def _hub_cache() -> str:
    """As huggingface_hub/constants.py has it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


# ---- engines


def check_engines() -> Finding:
    """What is alive now."""
    alive = [engine for engine in find_engines() if engine.is_alive]
    return ok("engines", ", ".join(f"{each.name} {each.state.value}" for each in alive) or "none alive")


def check_leftovers() -> Finding:
    """What killed supervisors left behind; the next start of the same engine clears its folder."""
    left = [engine for engine in find_engines() if engine.leftovers]
    if not left:
        return ok("leftovers", "none")
    files = " ".join(str(file) for engine in left for file in engine.leftovers)
    names = ", ".join(engine.name for engine in left)
    return warn("leftovers", f"killed, with files left behind: {names}", f"harmless; to clear: rm {files}")


def check_smoke(model: str | None) -> Finding:
    """Whether an engine really starts."""
    check = "smoke test"
    with tempfile.TemporaryDirectory(prefix="vllm-local-doctor-") as folder:
        try:
            test = SmokeTest(model, Path(folder))
        except VLLMError as exc:
            return fail(check, str(exc), "correct the setting named")
        try:
            return ok(check, test.run())
        except VLLMError as exc:
            return fail(check, str(exc), f"the whole log: {test.log}")


# ---- words


def gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)


def redacted(text: str) -> str:
    """Without the values of variables whose names say that they are secret, and without passwords in URLs."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return re.sub(r"://[^/@\s]+@", "://***@", text)
