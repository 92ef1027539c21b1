"""Whether a model can be split as somebody asks, by its config.json. Only what vLLM is certain to refuse is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared_engine.model_files.folder import read_json

_HEADS = ("num_attention_heads", "n_head", "n_heads")
# In a name or a text of config.json; vLLM's own names are in vllm/transformers_utils/model_arch_config_convertor.py.
_EXPERTS = ("expert", "moe")


def indivisible_heads(folder: Path, tensor_parallel_size: int) -> str | None:
    """Why the model can't be split over so many devices; None where it can, or where that is not certain."""
    config = _text_config(folder)
    heads = next((config[name] for name in _HEADS if _is_count(config.get(name))), None)
    if heads is None or tensor_parallel_size == 1:
        return None
    kv_heads = config.get("num_key_value_heads")
    if not _is_count(kv_heads) or config.get("kv_lora_rank"):
        kv_heads = None  # not split, or not by heads
    if heads % tensor_parallel_size:
        what = f"{heads} attention heads"
    elif kv_heads is not None and max(kv_heads, tensor_parallel_size) % min(kv_heads, tensor_parallel_size):
        what = f"{kv_heads} key-value heads"
    else:
        return None
    possible = [
        size
        for size in range(1, heads + 1)
        if heads % size == 0 and (kv_heads is None or not max(kv_heads, size) % min(kv_heads, size))
    ]
    sizes = ", ".join(map(str, possible))
    return f"the model in {folder} has {what}, which can't be shared out evenly: use one of {sizes}"


def lacks_experts(folder: Path) -> bool:
    """True where config.json leaves no doubt that the model has no experts."""
    config = read_json(folder / "config.json")
    return bool(config.get("architectures")) and not any(_speaks_of_experts(word) for word in _words(config))


def _speaks_of_experts(word: str) -> bool:
    return any(mark in word.lower() for mark in _EXPERTS)


def _words(value: Any) -> list[str]:
    """All names, and all that is text, at any depth; of what is null or 0, nothing."""
    if isinstance(value, dict):
        return [word for name, each in value.items() if each for word in (str(name), *_words(each))]
    if isinstance(value, list):
        return [word for each in value for word in _words(each)]
    return [value] if isinstance(value, str) else []


def _text_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    text = config.get("text_config")  # of a model that also sees or hears
    return text if isinstance(text, dict) else config


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
