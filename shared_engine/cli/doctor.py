"""Looks for what would keep an engine from working, with a remedy for each; at the end really starts one.

A check changes nothing that lasts. Values of the environment that may be secret never get into one.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared_engine.cli.finding import Finding, Outcome, fail, ok, redacted, warn
from shared_engine.cli.machine_checks import (
    check_gpus,
    check_model_cache,
    check_ram,
    check_runtime_directory,
    check_shared_memory,
)
from shared_engine.cli.selftest import IMPORT_TIMEOUT_S, SmokeTest, import_vllm
from shared_engine.errors import VLLMError
from shared_engine.launch.install import detect_build
from shared_engine.launch.interpreter import INSTALL_COMMAND, Interpreter, find_interpreter
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.launcher_messages import ImportFailed, Preloaded
from shared_engine.settings import ENVIRONMENT, EngineSettings
from shared_engine.vllm_versions import INSTALLED, RANGE, Age, age_of, matter_of_version

NO_MODEL = "no/model"  # settings want one; nothing is looked up under this name


def diagnose(model: str | None, *, smoke: bool, say: Callable[[str], None] = lambda _: None) -> Iterator[Finding]:
    """Check after check. An engine that the smoke test started is gone when this ends, however it ends.

    Args:
        model: for the smoke test; None: VLLM_MODEL_PATH, else a tiny one with random weights, made for it.
        smoke: start an engine at the end.
        say: called with what takes time, before it does.
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
        yield check_version(interpreter)
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
        yield fail("smoke test", "not done: no engine can start", "fix the failed checks above")
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
    """Have the launcher import vLLM, in the environment an engine would have; it exits at once."""
    check, began = "vLLM import", time.monotonic()
    try:
        done, events = import_vllm(interpreter)
    except subprocess.TimeoutExpired:
        return fail(check, f"not done after {IMPORT_TIMEOUT_S:g} s", "is the disk of the environment very slow?")
    except OSError as exc:
        return fail(check, f"{interpreter.path} can't be run: {exc.strerror}", f"run `{INSTALL_COMMAND}`")
    for event in events:
        if isinstance(event, Preloaded):
            return ok(check, f"vLLM {event.version} in {time.monotonic() - began:.1f} s")
        if isinstance(event, ImportFailed):
            return fail(check, event.error, f"run `{INSTALL_COMMAND}` (the environment is broken)")
    tail = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
    return fail(check, f"exit code {done.returncode}: {' '.join(tail)}", f"run `{INSTALL_COMMAND}`")


def check_version(interpreter: Interpreter) -> Finding:
    """Whether this release of vLLM is supported, and how its processes start."""
    check, version = "vLLM version", interpreter.version
    age, matter = age_of(version), matter_of_version(version)
    remedy = f"run `{INSTALL_COMMAND}` for {INSTALLED}"
    if matter is not None:
        return (fail if age is Age.TOO_OLD else warn)(check, matter, remedy)
    how = "its processes are forked" if interpreter.build == "cpu" else "it starts its own processes"
    return ok(check, f"{version}, of {RANGE}; {how}")


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
