"""The function that the launcher replaces."""

import multiprocessing
from typing import Any


def get_mp_context() -> Any:
    return multiprocessing.get_context("spawn")
