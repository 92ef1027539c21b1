"""How large a model is, by its files."""

from __future__ import annotations

import math
from pathlib import Path

from shared_engine.model_files.safetensors import tensors_in

_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def weights_bytes(folder: Path) -> int:
    """Of all files with weights; 0 without any."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(_SUFFIXES))


def parameter_count(folder: Path) -> int | None:
    """Numbers in all tensors: the parameters of a model that is not quantised. None where they can't be read."""
    tensors = tensors_in(folder.glob("*.safetensors"))
    return sum(math.prod(tensor.shape) for tensor in tensors.values()) or None
