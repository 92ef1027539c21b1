"""What the files in a model's folder say of it, without starting anything. Other models (hub ids) say nothing here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

# One of these in config.json; the first that is there counts, as in vllm/config/model.py.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# vLLM applies the conversation format of these by itself, without a template.
_OWN_FORMAT_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")


@lru_cache(maxsize=64)
def context_window(model: str) -> int | None:
    """The longest prompt and answer together that the model was made for; None where its folder does not say."""
    config = _read_json(Path(model).expanduser() / "config.json")
    text_config = config.get("text_config")  # of a model that also sees or hears
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _LENGTH_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


@lru_cache(maxsize=64)
def lacks_chat_template(model: str) -> bool:
    """True when the folder shows that the model has no chat template; False when it has one, or nobody can tell."""
    folder = Path(model).expanduser()
    tokenizer = _read_json(folder / "tokenizer_config.json")
    if not tokenizer:
        return False
    return not tokenizer.get("chat_template") and not any((folder / name).exists() for name in _OWN_FORMAT_FILES)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
