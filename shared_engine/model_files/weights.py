"""How large a model is, and whether all of it is here, by its files."""

from __future__ import annotations

import math
from pathlib import Path

from shared_engine.model_files.folder import read_json
from shared_engine.model_files.safetensors import tensors_in

_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
# As filter_files_not_needed_for_inference in vllm/model_executor/model_loader/weight_utils.py.
_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


def weights_bytes(folder: Path) -> int:
    """Of all files with weights; 0 without any."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(_SUFFIXES))


def parameter_count(folder: Path) -> int | None:
    """Numbers in all tensors: the parameters of a model that is not quantised. None where they can't be read."""
    tensors = tensors_in(folder.glob("*.safetensors"))
    return sum(math.prod(tensor.shape) for tensor in tensors.values()) or None


def has_weights(folder: Path) -> bool:
    """False for a model that was downloaded in part: the hub's client has a name for each file that is whole.

    Of a model that the hub has in several forms, with an index each, one is downloaded.
    """
    maps = [read_json(index).get("weight_map") for index in folder.glob("*.index.json")]
    forms = [set(map(str, each.values())) for each in maps if isinstance(each, dict)]
    if any(form and all((folder / name).is_file() for name in form) for form in forms):
        return True
    names = {file.name for file in folder.iterdir() if file.suffix in _SUFFIXES}
    return bool(names.difference(_OF_TRAINING, *forms))
