"""Which cores the workers of a CPU build compute on, where vLLM would put several on the same ones, or on none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shared_engine.launcher.vllm_build import is_cpu_build
from shared_engine.machine.cores import shared_out, usable_cores

BIND_VARIABLE = "VLLM_CPU_OMP_THREADS_BIND"
NODES = Path("/sys/devices/system/node")


def bind_workers_apart(args: Any) -> None:
    """Tell vLLM, in the environment, which cores are each worker's own; nothing where it, or the user, does well alone.

    vLLM gives the workers of each EngineCore a NUMA node each: it refuses to start where there are fewer nodes, and all
    EngineCores of a data-parallel server get the same ones (vllm/utils/ompmultiprocessing.py).

    Args:
        args: vLLM's, parsed.
    """
    if not is_cpu_build() or os.environ.get(BIND_VARIABLE, "auto") != "auto":
        return
    copies = args.data_parallel_size if args.data_parallel_size_local is None else args.data_parallel_size_local
    workers = args.tensor_parallel_size * args.pipeline_parallel_size // args.nnodes or 1
    is_one_on_each_node = copies == 1 and workers <= len(list(NODES.glob("node[0-9]*")))
    parts = None if workers == 1 == copies or is_one_on_each_node else shared_out(usable_cores(), copies * workers)
    if parts is not None:
        os.environ[BIND_VARIABLE] = "|".join(",".join(map(str, part)) for part in parts)
