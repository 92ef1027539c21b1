"""vLLM's argument parser; this one takes any flag, and looks at those it knows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class FlexibleArgumentParser(argparse.ArgumentParser):
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return self.parse_known_args(args, namespace)[0]
