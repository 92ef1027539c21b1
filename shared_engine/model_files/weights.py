"""How large a model is, and whether all of it is here, by its files."""

from __future__ import annotations

import math
from pathlib import Path

from shared_engine.model_files.folder import read_json
from shared_engine.model_files.safetensors import tensors_in

_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def weights_bytes(folder: Path) -> int:
    """Of all files with weights; 0 without any."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(_SUFFIXES))


def parameter_count(folder: Path) -> int | None:
    """Numbers in all tensors: the parameters of a model that is not quantised. None where they can't be read."""
    tensors = tensors_in(folder.glob("*.safetensors"))
    return sum(math.prod(tensor.shape) for tensor in tensors.values()) or None


def has_weights(folder: Path) -> bool:
    """False for a model that was downloaded in part: the hub's client has a name for each file that is whole."""
    maps = [read_json(index).get("weight_map") for index in folder.glob("*.index.json")]
    shards = {str(name) for each in maps if isinstance(each, dict) for name in each.values()}
    if shards:
        return all((folder / name).is_file() for name in shards)
    return any(file.suffix in _SUFFIXES for file in folder.iterdir())
