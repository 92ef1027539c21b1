"""``vllm-local evict``."""

from __future__ import annotations

import argparse

from shared_engine.cli.commands.stop import INTERRUPTED, add_ending, end

__all__ = ["EXAMPLES", "INTERRUPTED", "add_arguments", "run"]
EXAMPLES = ("vllm-local evict", "vllm-local evict Qwen3-4B --timeout 5", "vllm-local evict --all")
add_arguments = add_ending


def run(arguments: argparse.Namespace) -> int:
    return end(arguments, shuts_down=False, force=False)
