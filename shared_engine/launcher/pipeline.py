"""The stages of a model whose layers are shared out, on a CPU."""

from __future__ import annotations

import importlib
from typing import Any

WORKER = "vllm.v1.worker.cpu_worker"


def warm_up_stages() -> None:
    """Have each stage run once before the first request, which is when it makes the buffers for what it gets.

    vLLM leaves that out where nothing is compiled and the size of the KV cache is given; a stage behind the first then
    dies of the first request. Seen in vLLM 0.32. No-op where it has no such choice.
    """
    worker: Any = getattr(importlib.import_module(WORKER), "CPUWorker", None)
    decides = getattr(worker, "_should_warm_up_model", None)
    if decides is not None:
        worker._should_warm_up_model = lambda self: self.parallel_config.pipeline_parallel_size > 1 or decides(self)
