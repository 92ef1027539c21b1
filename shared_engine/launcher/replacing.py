"""Functions of vLLM that are replaced, wherever they were imported by name."""

from __future__ import annotations

import sys
from typing import Any


def replace_everywhere(function: Any, replacement: Any) -> None:
    """In all modules of vLLM that are imported so far; those that come later import the replacement."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm."):
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, replacement)
