"""Where the hub's files lie on this machine, and how much of a model is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def hub_cache(environment: Mapping[str, str]) -> Path:
    """As huggingface_hub/constants.py finds it."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(environment.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def cached_model(model: str, environment: Mapping[str, str], download_dir: str | None) -> Path:
    """The folder of a model with this id, whether it is there or not."""
    cache = Path(download_dir).expanduser() if download_dir else hub_cache(environment)
    return cache / f"models--{model.replace('/', '--')}"


def bytes_on_disk(cached: Path) -> int:
    """Of the files of a ``cached_model``; those that are being downloaded count as far as they are here."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(cached / "blobs"))
    except OSError:  # none yet; or one got its final name just now, and the next look counts it
        return 0
