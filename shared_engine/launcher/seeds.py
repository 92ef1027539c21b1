"""Requests with a seed on a CPU, put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What vLLM's runner does with what was sampled: the choice, and the accounts after it.
STEPS = ("_sample", "_bookkeeping_sync")


def keep_seeds_of_unfinished_prompts(module: Any) -> None:
    """Leave a request's random numbers alone while its prompt is processed in parts.

    vLLM samples a token after each part, drops it, and sets the request's generator back by an offset
    (``gpu_model_runner.py``), which a CPU's generator does not have: the error ends EngineCore, for all who ask it.
    Seen in vLLM 0.26 to 0.32. No-op where the class or its methods have other names.

    Args:
        module: where vLLM has its ``CPUModelRunner``.
    """
    runner = getattr(module, "CPUModelRunner", None)
    if all(hasattr(runner, name) for name in STEPS):
        for name in STEPS:
            setattr(runner, name, _without_generators_of_dropped(getattr(runner, name)))


def _without_generators_of_dropped(step: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *rest: Any, **named: Any) -> Any:
        generators = self.input_batch.generators
        if not generators:
            return step(self, *rest, **named)
        is_dropped = self.discard_request_mask.np
        # Taken out and put back, as the sampler has this very dict.
        dropped = {index: generators.pop(index) for index in list(generators) if is_dropped[index]}
        try:
            return step(self, *rest, **named)
        finally:
            generators.update(dropped)

    return call
