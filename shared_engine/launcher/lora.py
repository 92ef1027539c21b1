"""vLLM's arithmetic of LoRA adapters on a CPU, put right."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from shared_engine.launcher.replacing import replace_everywhere

OPS, USER = "vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.punica_wrapper.punica_cpu"
NAMES = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
# What they begin with, in all of them.
TAKEN = ["inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor"]


def answer_without_adapter() -> None:
    """Let requests without an adapter be answered by the model alone.

    A token without an adapter has the index -1 (``punica_wrapper/utils.py``). The GPU's kernels skip it; the plain
    torch ones take it as the last slot, so that once all slots (``max_loras``) are taken, the adapter there answers
    for the model too. Seen in vLLM 0.26 to 0.32. No-op where the functions are other ones.
    """
    try:
        ops = importlib.import_module(OPS)
        importlib.import_module(USER)  # has their names
    except ImportError:
        return
    for name in NAMES:
        known = getattr(ops, name, None)
        if known is not None and list(inspect.signature(known).parameters)[: len(TAKEN)] == TAKEN:
            replace_everywhere(known, _without_tokens_of_none(known))


def _without_tokens_of_none(op: Callable[..., None]) -> Callable[..., None]:
    def call(
        inputs: Any, lora_b_weights: Any, output_tensor: Any, lora_indices_tensor: Any, *rest: Any, **named: Any
    ) -> None:
        # Zero in is zero out. No branch: torch.compile reads this.
        inputs = inputs.masked_fill((lora_indices_tensor < 0).unsqueeze(1), 0)
        op(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *rest, **named)

    return call
