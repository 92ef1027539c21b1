"""Models as Ollama shows them: in its list, while they are loaded, and each by itself. Starts nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared_engine.gateway.catalog import ServedModel
from shared_engine.gateway.keep_alive import NEVER_S
from shared_engine.gateway.ollama.answers import rfc3339
from shared_engine.model_files.changes import while_unchanged
from shared_engine.model_files.folder import chat_template, read_json
from shared_engine.model_files.quantization import quantization_of
from shared_engine.model_files.weights import parameter_count, weights_bytes
from shared_engine.observe.engine_info import EngineInfo

_CAPABILITIES = {
    "chat": "completion",
    "completions": "completion",
    "embeddings": "embedding",
    "tools": "tools",
    "reasoning": "thinking",
    "image": "vision",
    "audio": "audio",
}
_INFO = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}
"""Names in config.json, and those of GGUF, which programs look for."""
_PARAMETERS = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}


@dataclass(frozen=True)
class _Files:
    """What a model's folder says; nothing where there is none here."""

    family: str = ""
    parameters: int | None = None
    size: int = 0
    precision: str = ""
    modified_at: float = 0.0
    config: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""


@while_unchanged
def _read(folder: Path, size: int) -> _Files:
    config = read_json(folder / "config.json")
    text = config.get("text_config")  # of a model that also sees or hears
    config = {**config, **text, "model_type": config.get("model_type")} if isinstance(text, dict) else config
    quantization = quantization_of(folder)
    dtype = config.get("dtype") or config.get("torch_dtype")
    return _Files(
        family=str(config.get("model_type") or ""),
        parameters=None if quantization else parameter_count(folder),
        size=size,
        precision=(
            quantization or {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(str(dtype), "")
        ).upper(),
        modified_at=folder.stat().st_mtime,
        config=config,
        template=chat_template(folder) or "",
    )


class Shown:
    """One model, or one of its adapters.

    Args:
        name: as programs call it.
        since: when the gateway began, for a model without files here.
    """

    def __init__(self, name: str, model: ServedModel, since: float) -> None:
        self._name = name
        self._model = model
        folder = model.config.settings.model_folder()
        self._files = _Files() if folder is None else _read(folder, weights_bytes(folder))
        self._modified_at = rfc3339(self._files.modified_at or since)

    def tag(self) -> dict[str, Any]:
        """In ``/api/tags``."""
        return {**self._head(), "modified_at": self._modified_at, "capabilities": self._capabilities()}

    def process(self, info: EngineInfo) -> dict[str, Any]:
        """In ``/api/ps``."""
        memory, gpu_memory = info.memory_bytes or 0, info.gpu_memory_bytes or 0
        latest, leaves_at = time.time() + NEVER_S, info.leaves_at
        if leaves_at is None:  # while requests run, and of one that stays
            ttl_s = info.idle_ttl_s
            leaves_at = latest if info.pinned or ttl_s is None else time.time() + ttl_s
        return {
            **self._head(),
            "size": gpu_memory or memory or self._files.size,
            "size_vram": gpu_memory,
            "expires_at": rfc3339(min(leaves_at, latest)),  # a program may have said any number
            "context_length": self._model.context_window or 0,
        }

    def whole(self, set_params: Mapping[str, Any]) -> dict[str, Any]:
        """In ``/api/show``.

        Args:
            set_params: what the file has each of its requests get.
        """
        window, files = self._model.context_window, self._files
        given = {**({} if window is None else {"num_ctx": window}), **set_params}
        parameters = {
            _PARAMETERS.get(name, name): value for name, value in given.items() if isinstance(value, str | int | float)
        }
        info = {"general.architecture": files.family, "general.basename": self._name}
        numbers = {"general.parameter_count": files.parameters, f"{files.family}.context_length": window}
        numbers |= {f"{files.family}.{name}": files.config.get(key) for key, name in _INFO.items()}
        return {
            "modelfile": "".join(
                [f"FROM {self._name}\n", *(f"PARAMETER {name} {value}\n" for name, value in parameters.items())]
            ),
            "parameters": "\n".join(f"{name:<30} {value}" for name, value in parameters.items()),
            "template": files.template,
            "details": self._details(),
            "model_info": info | {name: value for name, value in numbers.items() if value is not None},
            "capabilities": self._capabilities(),
            "modified_at": self._modified_at,
        }

    def _head(self) -> dict[str, Any]:
        config, files = self._model.config, self._files
        marks = f"{self._name}\0{config.settings.model}\0{files.size}\0{files.modified_at}"
        return {
            "name": self._name,
            "model": self._name,
            "size": files.size,
            "digest": hashlib.sha256(marks.encode("utf-8", "surrogateescape")).hexdigest(),
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        files, id_ = self._files, self._model.config.id
        return {
            "parent_model": "" if self._name == id_ else id_,
            "format": "safetensors",
            "family": files.family,
            "families": [files.family] if files.family else [],
            "parameter_size": "" if files.parameters is None else _people(files.parameters),
            "quantization_level": files.precision,
            "context_length": self._model.context_window or 0,
            "embedding_length": files.config.get("hidden_size") or 0,
        }

    def _capabilities(self) -> list[str]:
        """Of a model whose files are not here nobody knows more than that it answers."""
        found = self._model.capabilities()
        if found is None:
            return ["completion"]
        return list(dict.fromkeys(_CAPABILITIES[each] for each in found if each in _CAPABILITIES))


def _people(number: int) -> str:
    """As ``1.7B``."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.1f}".removesuffix(".0") + letter
    return str(number)
