"""LoRA adapters for tests: those of tiny_chat, and made up ones with any shapes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.paths import TINY_CHAT

BRIEF, POLITE = (str(TINY_CHAT / "adapters" / name) for name in ("brief", "polite"))
ADAPTERS = {"brief": BRIEF, "polite": POLITE}
LORA_FLAGS = [
    "--enable-lora", "--max-loras", "4", "--lora-modules", *(f"{name}={path}" for name, path in ADAPTERS.items()),
]  # fmt: skip
"""For a vLLM that is started by hand."""
OF_TINY_CHAT = {"q_proj": (256, 256), "v_proj": (256, 128)}
"""Inputs and outputs of modules."""


def make_adapter(
    folder: Path,
    rank: int = 4,
    modules: Mapping[str, tuple[int, int]] = OF_TINY_CHAT,
    layers: Iterable[int] = range(4),
    **config: Any,
) -> str:
    """A folder in PEFT's form, whose matrices are zero; its path."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in layers:
        for name, (inputs, outputs) in modules.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            shapes[f"{module}.lora_A.weight"] = (rank, inputs)
            shapes[f"{module}.lora_B.weight"] = (outputs, rank)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(modules), **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return str(folder)


def write_safetensors(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", size: int = 4) -> None:
    """Tensors of these shapes, all zero."""
    head: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, count = end, 1
        for length in shape:
            count *= length
        end = begin + count * size
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))
