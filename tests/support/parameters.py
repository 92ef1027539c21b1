"""For each sampling parameter that an adapter's model may hold a default for: a default, and a call's value."""

from __future__ import annotations

from typing import Any

SAMPLES: dict[str, tuple[Any, Any]] = {
    "temperature": (0.5, 0.25),
    "top_p": (0.5, 0.25),
    "top_k": (5, 3),
    "max_tokens": (9, 7),
    "repetition_penalty": (1.5, 1.25),
    "min_p": (0.5, 0.25),
    "presence_penalty": (0.5, -0.5),
    "frequency_penalty": (0.5, -0.5),
    "stop": (["x"], ["y"]),
    "stop_token_ids": ([1], [2, 3]),
    "include_stop_str_in_output": (True, False),
    "min_tokens": (2, 0),
    "ignore_eos": (True, False),
    "bad_words": (["x"], ["y", "z"]),
    "logit_bias": ({"5": -100.0}, {"6": 1.0}),
    "prompt_logprobs": (1, 0),
    "return_token_ids": (True, False),
    "skip_special_tokens": (False, True),
    "truncate_prompt_tokens": (5, -1),
    "priority": (1, -1),
    "seed": (1, 2),
    "lora": ("brief", "polite"),
    "structured_outputs": ({"regex": "a"}, {"choice": ["a", "b"]}),
}
"""As the body has them: token ids of ``logit_bias`` are text. ``logprobs`` and ``extra_body`` are sent otherwise, and
``lora`` as the body's model."""
SENT = {name: values for name, values in SAMPLES.items() if name != "lora"}
