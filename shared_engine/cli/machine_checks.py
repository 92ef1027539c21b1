"""What of this machine would keep an engine from working: GPUs, memory, folders. A check changes nothing that lasts."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shared_engine.cli.finding import Finding, fail, ok, warn
from shared_engine.errors import VLLMError
from shared_engine.machine.gpu import find_gpus, look_at_gpus
from shared_engine.machine.hub_cache import hub_cache
from shared_engine.machine.memory import GIB, ram, total_memory
from shared_engine.machine.nvidia import driver_release
from shared_engine.machine.nvml import NvmlError
from shared_engine.machine.systemd import new_scope, service_of_this_process
from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir, runtime_root
from shared_engine.settings import EngineSettings

MIN_SHM_BYTES = 1 * GIB
START_SHM_BYTES = 400 << 20  # of vLLM 0.32: two areas of 160 and 240 MiB between EngineCore and its workers
MIN_RAM_BYTES = 4 * GIB
MIN_RUNTIME_BYTES = 100 << 20
MIN_CACHE_BYTES = 10 * GIB


def check_gpus(settings: EngineSettings) -> Iterator[Finding]:
    """One finding for each GPU, or one that says why there is none."""
    gpus, release = find_gpus(), driver_release()
    for gpu in gpus:
        detail = f"{gpu.index}: {gpu.name}, driver {release}"
        if gpu.is_in_mig_mode:
            yield ok("GPU", f"{detail}, in MIG mode, {len(gpu.instances)} instances")
            continue
        if gpu.memory_total is None or gpu.memory_free is None:
            yield ok("GPU", f"{detail}; it shares the machine's memory")
            continue
        detail += f", {gpu.memory_free >> 20} of {gpu.memory_total >> 20} MiB free"
        if gpu.memory_free < settings.gpu_memory_utilization * gpu.memory_total:
            yield warn(
                "GPU",
                f"{detail}: less than gpu_memory_utilization = {settings.gpu_memory_utilization:g} of it",
                "end what holds it (`vllm-local status`, `nvidia-smi`), or lower gpu_memory_utilization",
            )
            continue
        yield ok("GPU", detail)
    if not gpus:
        yield _no_gpu(release)


def _no_gpu(release: str) -> Finding:
    try:
        look_at_gpus()
        why = f"the NVIDIA driver {release} shows none".replace("  ", " ")
    except NvmlError as exc:
        why = str(exc)
    return warn("GPU", f"none: {why}", "only the CPU build of vLLM runs without one")


def check_ram(*, is_cpu: bool) -> Finding:
    """RAM that is free, and what a container may have."""
    limit, physical = total_memory(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = ram()
    available = limit if memory is None else min(limit, memory.free)
    detail = f"{gib(available)} of {gib(limit)} free"
    if limit < physical:
        detail += f" (limited by the container; the machine has {gib(physical)})"
    if available >= MIN_RAM_BYTES:
        return ok("RAM", detail)
    need = "vLLM alone takes 2 GiB, the model and its KV cache come on top" if is_cpu else "weights pass through RAM"
    return warn("RAM", detail, f"close other programs or raise the container's limit: {need}")


def check_shared_memory(settings: EngineSettings, *, is_cpu: bool) -> Finding:
    """vLLM's processes talk through /dev/shm; on one GPU the only worker is EngineCore itself."""
    check = "/dev/shm"
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError as exc:
        return fail(check, f"not there: {exc.strerror}", "mount a tmpfs on /dev/shm: vLLM's processes talk through it")
    detail = f"{gib(free)} of {gib(total)} free"
    if free >= MIN_SHM_BYTES:
        return ok(check, detail)
    remedy = "start the container with --shm-size=8g or --ipc=host; in Kubernetes, an emptyDir of medium Memory there"
    has_workers = is_cpu or settings.tensor_parallel_size > 1
    return (fail if has_workers and free < START_SHM_BYTES else warn)(check, detail, remedy)


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
        fault, _, remedy = str(exc).partition(": ")
        return fail(check, fault, remedy)
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


def check_service() -> Finding | None:
    """Whether engines that are started from here end with the service this runs in; None outside of services."""
    service = service_of_this_process()
    if service is None:
        return None
    if new_scope("doctor", os.environ) is not None:
        return ok("systemd", f"engines started by {service} get a scope of their own")
    remedy = f"`loginctl enable-linger {os.environ.get('USER') or os.getuid()}` gives this user a systemd of its own"
    return warn("systemd", f"engines that {service} is the first to use end when it is restarted", remedy)


def check_model_cache(settings: EngineSettings) -> Finding:
    """Where weights from the hub go."""
    check, folder = "model cache", Path(settings.download_dir or hub_cache(os.environ))
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        remedy = "set HF_HOME (or download_dir) to a folder you may write to, or use models that are folders"
        return warn(check, f"{folder} can't be written", remedy)
    free = shutil.disk_usage(there).free
    if free < MIN_CACHE_BYTES:
        return warn(check, f"{folder}: {gib(free)} free", "make room for weights, or set HF_HOME to a larger disk")
    return ok(check, f"{folder}: {gib(free)} free")


def gib(count: int) -> str:
    """``1.5 GiB``."""
    return f"{count / GIB:.1f} GiB"
