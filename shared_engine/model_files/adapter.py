"""What the folder of a LoRA adapter says about it, in PEFT's form: its rank, and which models it fits.

The folder is the adapter's own, or the hub's snapshot of it on this machine. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine.machine.home import expanded
from shared_engine.model_files.folder import model_folder, read_json
from shared_engine.model_files.safetensors import Tensor, tensors_in

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")  # vllm/lora/lora_model.py
_MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
# Other types have packed several values into one, so that their shapes are not the model's.
_UNPACKED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        path: its folder, or its id on the hub, as vLLM is told.
        folder: where its files lie here; None for one of the hub that was never downloaded.
        rank: of its largest matrices; None where that is not known.
        base: the model that it was made for, as its maker named it; empty where they did not.
        version: 8 hex digits; other files have others.
    """

    path: str
    folder: Path | None
    rank: int | None
    base: str
    version: str


def read_adapter(path: str) -> Adapter:
    """The adapter in a folder, or of the hub.

    Raises:
        ValueError: there is none; the message says what is there instead.
    """
    given = expanded(path)
    folder = given if given.is_dir() else None
    if folder is None:
        if given.exists():
            raise ValueError(f"is a file; name the folder that holds {CONFIG}")
        if given.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
            raise ValueError(f"there is no such folder ({given.absolute()})")
        folder = model_folder(path)
        if folder is None:
            return Adapter(path, None, None, "", _version(path))
    config = _config(folder)
    ranks = [config.get("r"), *_numbers(config.get("rank_pattern"))]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise ValueError(f"its {CONFIG} has no rank (r) above 0")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(f"the folder {folder} has no weights of an adapter ({WEIGHTS[0]})")
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (folder / CONFIG, weights)]
    base = config.get("base_model_name_or_path")
    version = _version(f"{folder.resolve()} {files}")
    return Adapter(path, folder, max(ranks), base if isinstance(base, str) else "", version)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        is_model = (folder / "config.json").is_file()
        what = "a model and not a LoRA adapter: pass it as model=..." if is_model else "no LoRA adapter"
        raise ValueError(f"the folder {folder} has no {CONFIG}, so it holds {what}")
    config = read_json(folder / CONFIG)
    if not config:
        raise ValueError(f"its {CONFIG} is not a JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"it is not a LoRA adapter: its {CONFIG} says peft_type = {kind!r}")
    return config


def _numbers(pattern: object) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []


def _version(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def misfit(adapter: Adapter, model: Path) -> str | None:
    """Why the adapter can't be one of the model in this folder; None where it can, or the shapes do not tell."""
    if adapter.folder is None:
        return None
    own = tensors_in([adapter.folder / WEIGHTS[0]])
    theirs = tensors_in(sorted(model.glob("*.safetensors")))
    last = max((_layer(name) for name in theirs), default=-1)
    for name, tensor in own.items():
        found = _MATRIX.fullmatch(name)
        if found is None:
            continue
        module, matrix = found.groups()
        if _layer(name) > last >= 0 and _has_first_layer(name, theirs):
            return f"it has a layer {_layer(name)} ({module}), and the model's last one is {last}"
        base = theirs.get(f"{module}.weight")
        if base is None or not _is_plain(base) or len(tensor.shape) != 2:
            continue
        side, at = ("inputs", 1) if matrix == "A" else ("outputs", 0)
        if tensor.shape[at] != base.shape[at]:
            return f"{module} has {tensor.shape[at]} {side} in it, and {base.shape[at]} in the model"
    return None


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    return int(found[1]) if found else -1


def _has_first_layer(name: str, tensors: dict[str, Tensor]) -> bool:
    """Whether the model has modules of this name at all: others name theirs in another way."""
    first = _LAYER.sub(".layers.0.", name)
    found = _MATRIX.fullmatch(first)
    return found is not None and f"{found[1]}.weight" in tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype in _UNPACKED and len(tensor.shape) == 2
