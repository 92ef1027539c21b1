"""Replicas: the settings of each engine by itself, which differ in their devices, and whether there are as many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby, pairwise

from shared_engine.errors import EngineNotInstalledError, SettingsError
from shared_engine.launch.interpreter import Interpreter, find_interpreter, has_platform_plugin
from shared_engine.machine.cores import Core, shared_out, usable_cores
from shared_engine.machine.gpu import VISIBLE
from shared_engine.machine.nvidia import gpus_by_files
from shared_engine.settings import EngineSettings


def check_replicas(settings: EngineSettings) -> None:
    """Refuse replicas that this machine has no devices for. Takes milliseconds.

    Raises:
        SettingsError: it has not; where there is doubt, vLLM tries.
    """
    if not settings.is_replicated:
        return
    try:
        interpreter = find_interpreter(settings.python)
    except EngineNotInstalledError:  # which the first request tells, as of one engine
        return
    settings_of_replicas(settings, interpreter)


def settings_of_replicas(settings: EngineSettings, interpreter: Interpreter | None = None) -> dict[str, EngineSettings]:
    """The settings of each replica, by the name of its devices: ``cuda:0``, ``cuda:2,3``, ``cpu:0-3``.

    The same in every process with the same settings and the same CUDA_VISIBLE_DEVICES, so that they share engines. An
    app that names the devices of one replica itself (``visible_devices="1"``) shares that one.

    Raises:
        EngineNotInstalledError: no Python with a vLLM.
        SettingsError: there are too few devices.
    """
    interpreter = interpreter or find_interpreter(settings.python)
    alone = {"replicas": None, "gpu_ids": None, "start": "lazy"}
    if interpreter.build == "cpu":
        bound = _bound_cores(settings, interpreter)
        _check_room(settings)
        return {f"cpu:{bind}": settings.model_copy(update={**alone, "cpu_omp_threads_bind": bind}) for bind in bound}
    sets = [",".join(each) for each in _gpus(settings, interpreter)]
    return {f"cuda:{names}": settings.model_copy(update={**alone, "visible_devices": names}) for names in sets}


# ---- GPUs


def _gpus(settings: EngineSettings, interpreter: Interpreter) -> Sequence[Sequence[str]]:
    visible, size = os.environ.get(VISIBLE), settings.parallelism.here
    found = _usable(visible)
    problem = None if found is None else _lack(settings, found, visible)
    # What brings a device of its own is looked for only here: that reads many files.
    if problem is not None and (visible is not None or not has_platform_plugin(interpreter.path)):
        raise SettingsError(problem)
    if settings.gpu_ids is not None:
        return settings.gpu_ids
    needed = settings.replica_count * size
    names = list(map(str, range(needed))) if visible is None or found is None else found
    return [names[start : start + size] for start in range(0, needed, size)]


def _usable(visible: str | None) -> list[str] | None:
    """The GPUs that may be used, by name; None where no file tells."""
    if visible is not None:
        return [name for each in visible.split(",") if (name := each.strip()) and name != "-1"]
    count = gpus_by_files()
    return None if count is None else list(map(str, range(count)))


def _lack(settings: EngineSettings, found: Sequence[str], visible: str | None) -> str | None:
    """Why ``found`` does not do; None where it does."""
    size = settings.parallelism.here
    needed = settings.replica_count * size
    if settings.gpu_ids is not None:
        missing = [name for each in settings.gpu_ids for name in each if not _is_among(name, found)]
        return f"gpu_ids: {', '.join(missing)} can't be used: {_shown(found, visible)}" if missing else None
    if needed <= len(found):
        return None
    each = f" with {size} GPUs each" if size > 1 else ""
    return f"replicas = {settings.replicas}{each} need {needed} GPUs, as each has its own: {_shown(found, visible)}"


def _is_among(name: str, found: Sequence[str]) -> bool:
    """A UUID where there are numbers, or the other way round, can't be compared here."""
    is_number = name.isdigit()
    return name in found or any(each.isdigit() != is_number for each in found)


def _shown(found: Sequence[str], visible: str | None) -> str:
    if not found:
        return "this machine shows no GPU" if visible is None else f"{VISIBLE}={visible!r} shows none"
    where = "" if visible is None else f" ({VISIBLE}={visible!r})"
    return f"visible {'are' if len(found) > 1 else 'is'} {', '.join(found)}{where}"


# ---- cores


def _bound_cores(settings: EngineSettings, interpreter: Interpreter) -> list[str]:
    """For each replica the cores of vLLM's threads; of each of its workers by themselves."""
    if settings.gpu_ids is not None:
        raise SettingsError(
            f"gpu_ids names GPUs, and vLLM in {interpreter.path} is a build for the CPU: pass replicas="
            f"{settings.replica_count}, which share the cores; or install the CUDA build (`vllm-local install --cuda`)"
        )
    cores, workers = usable_cores(), settings.parallelism.here
    parts = core_shares(cores, settings.replica_count, workers)
    if parts is None:
        each = f" with {workers} workers each" if workers > 1 else ""
        raise SettingsError(
            f"replicas = {settings.replicas}{each} need a core of their own for each worker: this process may use "
            f"{sum(map(len, cores))}"
        )
    return ["|".join(_ranges(worker) for worker in part) for part in parts]


def core_shares(cores: Sequence[Core], replicas: int, workers: int) -> list[list[list[int]]] | None:
    """For each replica the processors of each of its workers; None where there are too few."""
    if len(cores) < replicas * workers:
        cores = [(cpu,) for core in cores for cpu in core]
    bounds = [index * len(cores) // replicas for index in range(replicas + 1)]
    parts = [shared_out(cores[start:end], workers) for start, end in pairwise(bounds)]
    whole = [part for part in parts if part is not None]
    return whole if len(whole) == replicas else None


def _ranges(cpus: Sequence[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5."""
    runs = ([cpu for _, cpu in run] for _, run in groupby(enumerate(sorted(cpus)), key=lambda each: each[1] - each[0]))
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _check_room(settings: EngineSettings) -> None:
    limit = settings.max_loaded_engines
    if limit is not None and limit < settings.replica_count:
        raise SettingsError(
            f"max_loaded_engines = {limit} leaves no room for replicas = {settings.replicas}, which are all on one "
            "device, the CPU: raise it, or leave it out"
        )
