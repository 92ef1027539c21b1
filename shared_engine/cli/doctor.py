"""Looks for what would keep an engine from working, with a remedy for each; at the end really starts one.

A check changes nothing that lasts. Values of the environment that may be secret never get into one.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shared_engine.cli.finding import Finding, Outcome, fail, ok, warn
from shared_engine.cli.machine_checks import (
    check_gpus,
    check_model_cache,
    check_ram,
    check_runtime_directory,
    check_service,
    check_shared_memory,
)
from shared_engine.cli.selftest import IMPORT_TIMEOUT_S, SmokeTest, import_vllm
from shared_engine.errors import VLLMError
from shared_engine.launch.fit import misfit_of
from shared_engine.launch.install import MARK, fitting_build
from shared_engine.launch.interpreter import INSTALL_COMMAND, Interpreter, find_interpreter
from shared_engine.launch.spec import engine_spec, launch_environment
from shared_engine.launcher import compiler
from shared_engine.machine.proc import exit_in_words
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.launcher_messages import ImportFailed, Preloaded
from shared_engine.runtime.redacted import redacted
from shared_engine.setting_sources import misspelt
from shared_engine.settings import ENVIRONMENT, SETTINGS, EngineSettings
from shared_engine.vllm_versions import INSTALLED, RANGE, Age, age_of, matter_of_version

COMPILER_TIMEOUT_S = 20.0
_COMPILE_REFUSAL = "import runpy, sys; print(runpy.run_path(sys.argv[1])['compile_refusal']() or '')"
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
    for name, meant in misspelt(SETTINGS, os.environ).items():
        yield warn("variables", f"{name} is set, and no setting reads it", f"did you mean {meant}?")
    interpreter, needed = check_interpreter(settings)
    yield needed
    if interpreter is not None:
        for check in (check_version, partial(check_build, settings=settings), partial(check_import, say=say)):
            needed = check(interpreter)
            yield needed
            if needed.outcome is Outcome.FAIL:
                break
    is_cpu = interpreter is not None and interpreter.build == "cpu"
    if not is_cpu:
        yield from check_gpus(settings)
    elif interpreter is not None:
        yield check_compiler(interpreter)
    yield check_ram(is_cpu=is_cpu)
    yield check_shared_memory(settings, is_cpu=is_cpu)
    runtime = check_runtime_directory()
    yield runtime
    service = check_service()
    if service is not None:
        yield service
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


def check_import(interpreter: Interpreter, say: Callable[[str], None] = lambda _: None) -> Finding:
    """Have the launcher import vLLM, in the environment an engine would have; it exits at once."""
    say("importing vLLM")
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
            return fail(check, event.error, _another_environment(interpreter))
    tail = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
    detail = f"the process {exit_in_words(done.returncode)}: {' '.join(tail)}"
    return fail(check, detail, _another_environment(interpreter))


def _another_environment(interpreter: Interpreter) -> str:
    """What to do about one whose vLLM can't be imported: damaged, or of a version unknown here."""
    prefix = Path(interpreter.path).parent.parent
    if (prefix / MARK).is_file():
        return f"`rm -r {prefix}`, then run `{INSTALL_COMMAND}`: it makes a new one"
    return f"`{INSTALL_COMMAND}` makes an environment of its own, with vLLM {INSTALLED}"


def check_version(interpreter: Interpreter) -> Finding:
    """Whether this release of vLLM is supported, and how its processes start."""
    check, version = "vLLM version", interpreter.version
    age, matter = age_of(version), matter_of_version(version)
    remedy = f"run `{INSTALL_COMMAND}` for {INSTALLED}"
    if matter is not None:
        return (fail if age is Age.TOO_OLD else warn)(check, matter, remedy)
    how = "its processes are forked" if interpreter.build == "cpu" else "it starts its own processes"
    return ok(check, f"{version}, of {RANGE}; {how}")


def check_build(interpreter: Interpreter, settings: EngineSettings) -> Finding:
    """Whether the build of vLLM fits the machine."""
    check, build = "build", interpreter.build
    if build == "cpu":
        fitting, why = fitting_build()
        if fitting == "cuda":
            return warn(check, f"the CPU build ({why})", f"run `{INSTALL_COMMAND} --cuda` to use the GPU")
        return ok(check, f"the CPU build ({why})")
    if build != "cuda":
        return warn(check, f"for {build}: not tried with vllm-local", "watch the first start: `vllm-local logs -f`")
    try:
        misfit = misfit_of(engine_spec(settings), launch_environment(os.environ), thorough=True)
    except VLLMError as exc:
        return fail(check, str(exc), "correct the setting named")
    if misfit is not None:
        return fail(check, f"the CUDA build; {misfit.reason}", misfit.remedy)
    return ok(check, "the CUDA build, which the NVIDIA driver here can run")


def check_compiler(interpreter: Interpreter) -> Finding:
    """Whether the CPU build can compile models, which makes them faster."""
    check = "compiler"
    command = [interpreter.path, "-I", "-c", _COMPILE_REFUSAL, compiler.__file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as exc:
        return warn(check, f"{interpreter.path} did not say: {exc}", "models run, perhaps uncompiled")
    refusal = done.stdout.strip()
    if refusal:
        return warn(check, refusal, "`apt-get install g++ python3-dev`: models run uncompiled until then, and slower")
    return ok(check, "models can be compiled")


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
