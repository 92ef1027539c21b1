"""How long vLLM's processes look at an empty queue before they sleep."""

from __future__ import annotations

import sys
from typing import Any

# How long a process polls its queue without rest before it sleeps, and how often one that sleeps looks by itself.
BUSY_LOOP_S = 0.01
LOOK_AGAIN_MS = 50


def rest_between_steps() -> None:
    """Let vLLM's EngineCore and workers sleep when a queue stays empty. They would poll it without rest for a second.

    On a CPU that is a core on which the API server, the app, or another engine has work to do
    (benchmarks/NOTES.md). The message that wakes a sleeper can be lost, at the start or on a busy machine: so it
    looks by itself as well, which vLLM has it do every 5 s.
    """
    queues: Any = sys.modules.get("vllm.distributed.device_communicators.shm_broadcast")
    condition = getattr(queues, "SpinCondition", None)
    if condition is None or condition.__init__.__defaults__ != (1,):  # busy_loop_s
        return
    if hasattr(queues, "SHM_READER_RECHECK_INTERVAL_MS"):
        condition.__init__.__defaults__ = (BUSY_LOOP_S,)
        queues.SHM_READER_RECHECK_INTERVAL_MS = LOOK_AGAIN_MS
