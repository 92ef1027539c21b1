"""The devices of an engine: which it uses, and whether there are enough, as far as that shows before a start."""

from __future__ import annotations

import os

from shared_engine.errors import SettingsError
from shared_engine.launch.adapters import takes_adapters
from shared_engine.launch.interpreter import Interpreter, lacks_package
from shared_engine.settings import EngineSettings


def gpus_of(settings: EngineSettings) -> tuple[str, ...]:
    """The GPUs a server uses: the first of the visible ones, as many as it has workers here."""
    parallelism = settings.parallelism
    count = parallelism.here or parallelism.world
    visible = _visible(settings)[1]
    names = [name.strip() for name in visible.split(",")] if visible else list(map(str, range(count)))
    return tuple(f"cuda:{name}" for name in names[:count])


def check_devices(settings: EngineSettings, interpreter: Interpreter) -> None:
    """
    Raises:
        SettingsError: there are fewer visible GPUs, or processors, than workers; no Ray for what needs it; or what
            vLLM's CPU build can't do.
    """
    parallelism = settings.parallelism
    if parallelism.uses_ray and interpreter.build == "cpu":
        raise SettingsError(
            f"engine_args: {parallelism.on_ray} is not for vLLM's CPU build, which runs on no Ray: leave it out"
        )
    if parallelism.uses_ray and lacks_package(interpreter.path, "ray"):
        raise SettingsError(
            f"engine_args: {parallelism.on_ray} needs Ray beside vLLM, and {interpreter.path} has none: "
            f"`{interpreter.path} -m pip install 'ray[cgraph]'`, or leave it out: one machine needs no Ray"
        )
    if interpreter.build == "cpu":
        if parallelism.pipeline > 1 and (settings.enforce_eager or takes_adapters(settings)):
            what = "enforce_eager" if settings.enforce_eager else "lora_adapters"
            raise SettingsError(
                f"pipeline_parallel_size = {parallelism.pipeline}: vLLM's CPU build can do it with a compiled model "
                f"only, and dies of the first request else: leave {what} out, or use tensor_parallel_size"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if parallelism.here > max(cores, 1) and settings.cpu_omp_threads_bind is None:
            raise SettingsError(
                f"{parallelism.needs('processor cores')}, one for each worker; {cores} can be used here: "
                f"{parallelism.lower}, or pass cpu_omp_threads_bind='nobind', for workers that share them"
            )
    name, visible = _visible(settings)
    if interpreter.build != "cuda":
        return
    count = len(visible.split(",")) if visible else parallelism.here
    if count < parallelism.here:
        raise SettingsError(
            f"{parallelism.needs('devices')}; {count} {'are' if count > 1 else 'is'} visible: {name}={visible!r}; "
            f"name more there, or {parallelism.lower}"
        )


def _visible(settings: EngineSettings) -> tuple[str, str | None]:
    """What says which GPUs there are, and which."""
    if settings.visible_devices:
        return "visible_devices", settings.visible_devices
    return "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
