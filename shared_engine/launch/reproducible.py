"""What ``reproducible`` makes of an engine: one that computes a request alike, whatever else is in its batch."""

from __future__ import annotations

import os

from shared_engine.machine.gpu import ORDER, VISIBLE, find_gpus, in_cuda_order, visible_gpus
from shared_engine.machine.nvml import Gpu
from shared_engine.settings import EngineSettings

VARIABLE = "VLLM_BATCH_INVARIANT"
EXACT_ON_A_CPU = "float32"
"""Unless the user names another type. Batches of other sizes differ in the last digits: with bfloat16 one question of
eight had another text in each batch of 64 than alone, with this one none had (benchmarks/NOTES.md)."""
LEAST = (8, 0)
"""The compute capability from which on vLLM can (vllm/model_executor/determinism/batch_invariant.py)."""


def batch_invariance(settings: EngineSettings, build: str | None) -> tuple[dict[str, str], str | None]:
    """The engine's environment for it, and what is to be said where ``reproducible`` can't have it.

    Never on a CPU: vLLM has no guard there, and would take kernels that only GPUs have.
    """
    own = os.environ.get(VARIABLE, "0")
    if build == "cpu":
        return ({} if own == "0" else {VARIABLE: "0"}), None
    if not settings.reproducible or build != "cuda":
        return ({} if own == "0" else {VARIABLE: own}), None
    gpus = in_cuda_order(find_gpus(), os.environ.get(ORDER))
    visible = visible_gpus(gpus, settings.visible_devices or os.environ.get(VISIBLE))
    lacking = [gpu for gpu in visible if (gpu.compute_capability or (0, 0)) < LEAST]
    if visible and not lacking:
        return {VARIABLE: "1"}, None
    which = ", ".join(map(_described, lacking)) or "no GPU was found"
    least = ".".join(map(str, LEAST))
    return {}, f"reproducible: vLLM's batch invariance needs GPUs of compute capability {least} or more ({which})"


def _described(gpu: Gpu) -> str:
    known = gpu.compute_capability
    return f"{gpu.name} has {'.'.join(map(str, known))}" if known else f"that of {gpu.name} is not known"
