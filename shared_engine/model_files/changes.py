"""What was read of a folder, kept until the folder has changed.

While a model is downloaded or copied, its files come one by one, and programs look at it meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

SETTLED_S = 10.0
"""For so long after a file has come its content may still be coming, which the folder's time does not show."""


def while_unchanged(read: F) -> F:
    """``read`` is called once for a folder and what follows it, and again when files have come there, or gone."""

    @lru_cache(maxsize=64)
    def kept(folder: Path, _: float, *rest: Any) -> Any:
        return read(folder, *rest)

    @wraps(read)
    def looked(folder: Path, *rest: Any) -> Any:
        try:
            changed_at = folder.stat().st_mtime
        except OSError:
            changed_at = time.time()
        return read(folder, *rest) if 0 <= time.time() - changed_at < SETTLED_S else kept(folder, changed_at, *rest)

    return cast("F", looked)
