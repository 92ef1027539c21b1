"""tiny_chat with 8-bit weights, as llm-compressor writes them (compressed-tensors, W8A8); made by hand."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.paths import TINY_CHAT

CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip


def make_quantised_model(folder: Path) -> str:
    """Its path. Each row of a linear layer is written as integers and one scale."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in TINY_CHAT.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder / file.name)
    config = json.loads((TINY_CHAT / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIG}))
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, (dtype, shape, data) in _read(TINY_CHAT / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = (dtype, shape, data)
            continue
        assert dtype == "BF16"
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        scales = np.abs(values).max(axis=1, keepdims=True) / 127
        whole = np.clip(np.rint(values / scales), -127, 127).astype("i1")
        tensors[name] = ("I8", shape, whole.tobytes())
        tensors[f"{name}_scale"] = ("F32", [shape[0], 1], scales.astype("<f4").tobytes())
    _write(folder / "model.safetensors", tensors)
    return str(folder)


def _read(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    head.pop("__metadata__", None)
    return {
        name: (each["dtype"], each["shape"], data[each["data_offsets"][0] : each["data_offsets"][1]])
        for name, each in head.items()
    }


def _write(file: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    encoded = json.dumps(head).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(data for _, _, data in tensors.values()))
