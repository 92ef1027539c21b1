"""Where the hub's files lie on this machine, how much of a model is there, and how much there will be.

Nobody is asked for the total: huggingface_hub writes down what a model consists of before it fetches it
(huggingface_hub/_tree_cache.py). Releases before that, and other ways to fetch a model, leave no total.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from shared_engine.machine.home import caches, expanded

MAIN = "main"
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/[^/]+/?$")
_SAYS_NOTHING = re.compile(r"model|final|latest|merged|hf|checkpoint[-_]?\d+|\d+|[0-9a-f]{40}", re.IGNORECASE)


def called(model: str) -> str:
    """What people know a model by: the last component of its name, with the one before it where that alone says
    nothing, as ``model``; of a folder in the hub's cache the name that it has there.
    """
    snapshot = _SNAPSHOT.search(model)
    parts = snapshot[1].split("--") if snapshot else model.rstrip("/").split("/")
    return "/".join(part for part in (parts[-2:] if _SAYS_NOTHING.fullmatch(parts[-1]) else parts[-1:]) if part)


def hub_cache(environment: Mapping[str, str]) -> Path:
    """As huggingface_hub/constants.py finds it."""
    home = environment.get("HF_HOME") or caches(environment) / "huggingface"
    return expanded(environment.get("HF_HUB_CACHE") or Path(home, "hub"), environment)


def cached_model(model: str, environment: Mapping[str, str], download_dir: str | None) -> Path:
    """The folder of a model with this id, whether it is there or not."""
    cache = expanded(download_dir, environment) if download_dir else hub_cache(environment)
    return cache / f"models--{model.replace('/', '--')}"


def commit_of(cached: Path, revision: str | None) -> str:
    """The commit that a branch or a tag was when it was last looked up; the revision itself where that is not known."""
    try:
        return (cached / "refs" / (revision or MAIN)).read_text().strip()
    except OSError:
        return revision or MAIN


def bytes_on_disk(cached: Path) -> int:
    """Of the files of a ``cached_model``; those that are being downloaded count as far as they are here."""
    return sum(size for _, size, _ in _blobs(cached))


def bytes_of_download(cached: Path, revision: str | None) -> tuple[int, int] | None:
    """How much of a download is here, and how much it is in all; None where that is not known.

    Who fetches a model takes some of its files only: the weights in one form of several. A file that has come, or has
    begun to, brings those whose names differ from its own by numbers only.
    """
    here = {name: size for _, size, name in sorted(_blobs(cached))}  # of several attempts, the last
    files = _files(cached / "trees" / f"{commit_of(cached, revision)}.json")
    begun = {_NUMBER.sub("", path) for path, (blob, _) in files.items() if blob in here}
    coming = {blob: size for path, (blob, size) in files.items() if _NUMBER.sub("", path) in begun}
    if not coming:
        return None
    return sum(min(here.get(blob, 0), size) for blob, size in coming.items()), sum(coming.values())


_NUMBER = re.compile(r"\d+")


def _blobs(cached: Path) -> list[tuple[float, int, str]]:
    """When each was last written, its bytes, and the name that it will have when it is whole.

    While a file is downloaded it has a longer name, and an attempt that was ended leaves it behind.
    """
    try:
        found = [(entry.stat(), entry.name.partition(".")[0]) for entry in os.scandir(cached / "blobs")]
    except OSError:  # none yet; or one got its final name just now, and the next look counts it
        return []
    return [(status.st_mtime, status.st_size, name) for status, name in found]


def _files(tree: Path) -> dict[str, tuple[str, int]]:
    """The files of a commit by path: the name of the blob, and the bytes; empty where huggingface_hub has no list."""
    try:
        listed = json.loads(tree.read_text())
        if listed["format_version"] != 1:
            return {}
        return {
            str(path): (str(file.get("lfs_sha256") or file["blob_id"]), int(file.get("lfs_size") or file["size"]))
            for path, file in listed["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
