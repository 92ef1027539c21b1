"""``vllm-local rm``."""

from __future__ import annotations

import argparse

from shared_engine.cli.commands.list import add_download_dir, download_dir_of
from shared_engine.cli.disk_models import DiskModel, delete_from_hub_cache, model_named, models_on_disk
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import size
from shared_engine.errors import InvalidInputError

EXAMPLES = ("vllm-local rm Qwen/Qwen3-4B", "vllm-local rm Qwen3-0.6B bge-m3")
INTERRUPTED = "what is left of a model is listed as incomplete: run the same command again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a hub id, or its last part, as `vllm-local list` shows it"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=text)
    add_download_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    download_dir = download_dir_of(arguments)
    here = {model.name: model for model in models_on_disk(download_dir)}
    names = list(dict.fromkeys(model_named(name, download_dir) for name in arguments.models))
    for name in names:
        _check(name, here.get(name))
    for name in names:
        print(f"{name} is deleted: {size(delete_from_hub_cache(name, download_dir))}")
    return DONE


def _check(name: str, model: DiskModel | None) -> None:
    """Before anything is deleted."""
    if model is None:
        raise InvalidInputError(
            f"{name!r} is not a model from the hub on this disk: `vllm-local list` shows those that are"
        )
    if model.folder == name:
        raise InvalidInputError(f"{name} is a folder of yours, not from the hub: delete it yourself")
    if model.is_loaded:
        raise InvalidInputError(f"{name} is loaded: `vllm-local unload {name}` first")
