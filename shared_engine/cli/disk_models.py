"""Models on this machine: those from the hub in its cache, and the folders that engines were started on."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared_engine.errors import FetchError, SettingsError
from shared_engine.machine.home import expanded
from shared_engine.machine.hub_cache import bytes_on_disk, cached_model, hub_cache
from shared_engine.machine.locks import try_lock
from shared_engine.model_files.folder import model_folder
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.record import EngineState

_PREFIX = "models--"
_LOADED = (EngineState.STARTING, EngineState.READY, EngineState.ASLEEP)


@dataclass(frozen=True)
class DiskModel:
    """One model.

    Attributes:
        name: as commands take it: a hub id, or a folder.
        folder: where its files lie; None where a download has not come that far.
        bytes: on the disk, with what an ended download has left.
        changed_at: when something of it was last written, in seconds since the epoch.
        is_whole: no download of it is unfinished.
        is_loaded: an engine has it in memory, or loads it.
    """

    name: str
    folder: str | None
    bytes: int
    changed_at: float
    is_whole: bool
    is_loaded: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def models_on_disk(download_dir: str | None) -> list[DiskModel]:
    """All that are known, the last changed first.

    Args:
        download_dir: where weights from the hub may be, beside its cache.
    """
    engines = find_engines()
    loaded = {engine.model for engine in engines if engine.state in _LOADED}
    found = _merged(_of_the_hub(_caches(download_dir), loaded))
    for model in {engine.model for engine in engines if engine.model and os.path.isabs(engine.model)}:
        folder = Path(model)
        if folder.is_dir():
            files = [file.stat() for file in folder.iterdir() if file.is_file()]
            changed = max((status.st_mtime for status in files), default=0.0)
            held = sum(status.st_size for status in files)
            found.append(DiskModel(model, model, held, changed, is_whole=True, is_loaded=model in loaded))
    return sorted(found, key=lambda each: (-each.changed_at, each.name))


def model_named(name: str, download_dir: str | None) -> str:
    """The model on this disk that ``name`` is short for: the last component of its own; else ``name`` as it is.

    Raises:
        SettingsError: several are called so.
    """
    if "/" in name or os.path.exists(expanded(name)):
        return name
    called = sorted({each.name for each in models_on_disk(download_dir) if each.name.rpartition("/")[2] == name})
    if len(called) > 1 and name not in called:
        raise SettingsError(f"model = {name!r} means {len(called)} models on this disk: {', '.join(called)}")
    return called[0] if len(called) == 1 else name


def delete_from_hub_cache(model: str, download_dir: str | None) -> int:
    """All that is here of a model from the hub; how many bytes that were.

    What is left of it when this is interrupted is listed as incomplete, and can be deleted again.

    Raises:
        FetchError: it is being fetched; nothing was deleted.
    """
    cached = [folder for cache in _caches(download_dir) if (folder := cached_model(model, {}, str(cache))).is_dir()]
    locks = [folder.parent / ".locks" / folder.name for folder in cached]
    with ExitStack() as held:
        for file in (each for folder in locks for each in folder.glob("*.lock")):  # huggingface_hub's, one for a file
            if not try_lock(held.enter_context(open(file, "ab")).fileno(), fcntl.LOCK_EX):
                raise FetchError(f"{model} is being fetched: end that first")
        freed = sum(map(bytes_on_disk, cached))
        for folder in cached:
            for part in (folder / "refs", folder / "snapshots", folder):  # the names of whole files first
                if part.exists():
                    shutil.rmtree(part)
        for folder in locks:
            shutil.rmtree(folder, ignore_errors=True)
    return freed


def _caches(download_dir: str | None) -> list[Path]:
    return list(dict.fromkeys([hub_cache(os.environ), *([expanded(download_dir)] if download_dir else [])]))


def _merged(models: Iterable[DiskModel]) -> list[DiskModel]:
    """With a download_dir the weights of a model are there, and the rest is in the hub's cache."""
    found: dict[str, DiskModel] = {}
    for model in models:
        other = found.get(model.name)
        found[model.name] = (
            model
            if other is None
            else DiskModel(
                model.name,
                other.folder or model.folder,
                other.bytes + model.bytes,
                max(other.changed_at, model.changed_at),
                is_whole=other.is_whole and model.is_whole,
                is_loaded=model.is_loaded,
            )
        )
    return list(found.values())


def _of_the_hub(caches: Iterable[Path], loaded: set[str | None]) -> Iterator[DiskModel]:
    for cached in (each for cache in caches for each in sorted(cache.glob(f"{_PREFIX}*")) if each.is_dir()):
        name = cached.name.removeprefix(_PREFIX).replace("--", "/")
        blobs = list((cached / "blobs").glob("*")) if (cached / "blobs").is_dir() else []
        folder = model_folder(name, None, str(cached.parent))
        changed = max((blob.stat().st_mtime for blob in blobs if blob.exists()), default=cached.stat().st_mtime)
        yield DiskModel(
            name,
            None if folder is None else str(folder),
            bytes_on_disk(cached),
            changed,
            is_whole=folder is not None and not _is_coming({blob.name for blob in blobs}),
            is_loaded=name in loaded,
        )


def _is_coming(blobs: set[str]) -> bool:
    """Whether there is a file that has begun to come, and is not here as a whole."""
    return any(name.endswith(".incomplete") and name.partition(".")[0] not in blobs for name in blobs)
