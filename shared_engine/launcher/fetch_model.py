"""Runs inside the engine's own Python: fetches a model from the hub, as huggingface_hub there does it.

    fetch_model.py MODEL REVISION DOWNLOAD_DIR    the last two may be empty
    fetch_model.py MODEL REVISION                 only its config.json, of which nothing stays on the disk

Prints JSON objects on stdout: ``{"files": 9, "bytes": 123, "commit": "..."}`` as soon as that is known; at the end
``{"folder": "..."}``, ``{"config": {...}}`` or ``{"refusal": "why not"}``. How far it is shows on the disk
(machine/hub_cache.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# As vllm/model_executor/model_loader/default_loader.py looks for them: the first kind that is there.
_WEIGHTS = ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt")
_OTHER_FORMS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".tflite", ".ot")
_MODULE = re.compile(r"\d+_\w+/")
"""A folder of sentence-transformers: part of the model."""
_CONFIG_LIMIT_S = 30
_TEXTS = (".json", ".txt", ".model", ".py", ".jinja", ".tiktoken", ".md", ".yaml", ".yml")


def needed(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a model's files the weights that vLLM loads, and what else it reads."""
    names = sorted(files)
    weights = next(
        (found for pattern in _WEIGHTS if (found := [n for n in names if _is_top(n) and fnmatch(n, pattern)])), []
    )
    weights += [name for name in names if _MODULE.match(name) and name.endswith((".safetensors", ".bin"))]
    others = [
        name
        for name in names
        if (_is_top(name) or _MODULE.match(name) or name.startswith("additional_chat_templates/"))
        and not name.endswith(_OTHER_FORMS)
        and (name.endswith(_TEXTS) or name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")))
    ]
    return weights, others


def _is_top(name: str) -> bool:
    return "/" not in name


def fetch(model: str, revision: str | None, download_dir: str | None) -> None:
    """See the module's docstring."""
    from huggingface_hub import HfApi, snapshot_download

    tree = HfApi().list_repo_tree(model, recursive=True, revision=revision)
    sizes = {file.path: int(file.size) for file in tree if hasattr(file, "size")}
    weights, others = needed(sizes)
    if not weights:
        kinds = sorted({os.path.splitext(name)[1] for name in sizes if name.endswith(_OTHER_FORMS)})
        raise NoWeightsError(
            f"{model} has no weights that vLLM loads" + (f" (only {', '.join(kinds)})" if kinds else "")
        )
    say(files=len(weights) + len(others), bytes=sum(sizes[name] for name in (*weights, *others)))
    # Only weights are looked for in the setting download_dir.
    places: tuple[tuple[str | None, list[str]], ...] = ((None, others), (download_dir, weights))
    if download_dir is None:
        places = ((None, [*others, *weights]),)
    for cache, names in places:
        check_space(model, revision, cache, {name: sizes[name] for name in names})
    folders = [
        snapshot_download(model, revision=revision, cache_dir=cache, allow_patterns=names) for cache, names in places
    ]
    say(folder=folders[-1])


def fetch_config(model: str, revision: str | None) -> None:
    """See the module's docstring. Ends by itself, whatever became of who asked."""
    from huggingface_hub import hf_hub_download

    signal.alarm(_CONFIG_LIMIT_S)
    # Not in the hub's cache: a model of which a config alone is there would look as if it had been downloaded.
    with tempfile.TemporaryDirectory() as folder:
        path = hf_hub_download(model, "config.json", revision=revision, local_dir=folder)
        say(config=json.loads(Path(path).read_bytes()))


def check_space(model: str, revision: str | None, cache: str | None, sizes: Mapping[str, int]) -> None:
    """
    Raises:
        NoSpaceError: the disk has less than is still to come.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    place = cache or constants.HF_HUB_CACHE
    missing = [
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(model, name, cache_dir=cache, revision=revision), str)
    ]
    os.makedirs(place, exist_ok=True)
    free = shutil.disk_usage(place).free
    if sum(missing) > free:
        raise NoSpaceError(f"{place} has {free / 1e9:.1f} GB free, and {sum(missing) / 1e9:.1f} GB are to come")


class NoWeightsError(Exception):
    """The hub's model is of no use to vLLM."""


class NoSpaceError(Exception):
    """It would not fit on the disk."""


def say(**told: Any) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def in_words(error: BaseException, model: str, revision: str | None) -> str:
    """Why a model could not be fetched, and what to do."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        return f"{model} is gated: accept its terms on its page of the hub, and set HF_TOKEN to a token of that account"
    if "RepositoryNotFoundError" in names:
        return f"the hub has no model {model}, or it is private: then set HF_TOKEN"
    if "RevisionNotFoundError" in names:
        return f"{model} has no revision {revision}"
    if isinstance(error, NoWeightsError | NoSpaceError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:300]}"


def main(arguments: list[str]) -> int:
    model, revision, *rest = arguments
    try:
        if rest:
            fetch(model, revision or None, rest[0] or None)
        else:
            fetch_config(model, revision or None)
    except Exception as exc:
        say(refusal=in_words(exc, model, revision or None))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
