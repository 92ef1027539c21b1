"""How vLLM's own processes come to be: forked from one that has imported vLLM, where that is known to work.

``vllm serve`` imports vLLM three times (API server, EngineCore, worker; about 7 s each). A process forked from one that
has imported it and touched no device starts in milliseconds.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import multiprocessing
import os
import platform
import sys
from types import SimpleNamespace
from typing import Any

from shared_engine.launcher.vllm_build import is_cpu_build
from shared_engine.vllm_versions import Age, age_of

# "plain" or "fork" instead of what is known to work here: to compare the two, and to try the fork path on CUDA.
START_VARIABLE = "VLLM_LOCAL_START"


def fork_refusal(version: str) -> str | None:
    """Why the server's own processes can't be forked here, or None when they can."""
    wanted = os.environ.get(START_VARIABLE)
    if wanted == "plain":
        return f"{START_VARIABLE}=plain"
    if sys.platform != "linux":
        return f"forking is not safe on {sys.platform}"
    if is_cuda_initialized():
        return "importing vLLM has initialised CUDA"
    if wanted == "fork":
        return None
    if not is_cpu_build():
        return f"not a CPU build: vLLM picks the start method itself ({START_VARIABLE}=fork tries it)"
    if age_of(version) is not Age.SUPPORTED:
        return f"vLLM {version} was not tried with it"
    return None


def is_cuda_initialized() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def use_fork_inside_vllm() -> None:
    """Make vLLM fork its EngineCore and workers instead of spawning them, with the thread binding kept.

    ``get_mp_context`` is the one place that picks the method, and is imported by name elsewhere: replace it first.
    """
    import vllm.utils.system_utils as system_utils

    pick = system_utils.get_mp_context
    # From 0.33 on: a child that is forked after the parent has run OpenMP would wait for the parent's threads.
    release_threads = getattr(system_utils, "_release_libgomp_threads", lambda: None)

    def get_mp_context() -> Any:
        if is_cuda_initialized():
            return pick()  # a process that has touched its GPU can't be forked: vLLM picks, and logs why
        release_threads()
        return multiprocessing.get_context("fork")

    system_utils.get_mp_context = get_mp_context
    os.register_at_fork(after_in_child=apply_thread_binding)
    # Has several API servers spawned, whatever the method: this is all that it takes of multiprocessing for that.
    utils: Any = importlib.import_module("vllm.v1.utils")
    utils.multiprocessing = SimpleNamespace(get_context=lambda _: get_mp_context())
    os.register_at_fork(after_in_child=share_metrics)


def share_metrics() -> None:
    """Do in a forked API server, one of several, what prometheus_client does as it is imported in a spawned one."""
    values: Any = sys.modules.get("prometheus_client.values")
    if values is not None and os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        values.ValueClass = values.get_value_class()


def apply_thread_binding() -> None:
    """Do in a forked worker what libgomp does from its environment in a spawned one.

    vLLM sets OMP_NUM_THREADS and GOMP_CPU_AFFINITY around the start of each worker
    (vllm/utils/ompmultiprocessing.py); libgomp reads them once, when loaded, which a forked worker never sees.
    Without it the worker's threads fight the scheduler for its core.
    """
    cpus = os.environ.get("GOMP_CPU_AFFINITY", "")
    torch = sys.modules.get("torch")
    if not cpus or torch is None:
        return
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split()})
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def preload_libgomp() -> None:
    """Run this interpreter again with torch's libgomp in LD_PRELOAD, as vLLM's CPU platform does for its workers.

    A forked worker inherits what the launcher was started with, so it must be there from the start
    (vllm/platforms/cpu.py, and issue 27369 of vllm-project/vllm).
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if platform.system() != "Linux" or not is_cpu_build() or "libgomp" in preloaded or "omp" in preloaded:
        return
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    package = os.path.dirname(spec.origin)
    places = (os.path.join(os.path.dirname(package), "torch.libs"), os.path.join(package, "lib"))
    found = [path for place in places for path in glob.glob(os.path.join(place, "libgomp*.so*"))]
    if found:
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (preloaded, found[0])))
        os.execv(sys.executable, [sys.executable, "-u", *sys.argv])
