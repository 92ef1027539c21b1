"""What vLLM's server says of itself to its supervisor, beside vLLM's own routes."""

from __future__ import annotations

from typing import Any

ABOUT = "/vllm-local/about"
"""-> ``{"max_num_seqs"}``: see ``max_num_seqs``; null where it is not known."""


def max_num_seqs(app: Any) -> int | None:
    """How many requests vLLM's application runs at once, on all its EngineCores.

    None where it does not have that in the place that we know.
    """
    try:
        config = app.state.vllm_config
        return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)
    except (AttributeError, TypeError, ValueError):
        return None
