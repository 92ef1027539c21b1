"""Names, types and shapes of the tensors in safetensors files, from their heads alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MAX_HEAD_BYTES = 100 << 20  # as the format has it


class Tensor(NamedTuple):
    """One tensor; ``dtype`` is the format's word, such as ``BF16``."""

    dtype: str
    shape: tuple[int, ...]


def tensors_in(files: Iterable[Path]) -> dict[str, Tensor]:
    """Those of all the files, by name; of a file that is missing or damaged none."""
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            for name, each in _head(file).items():
                if name != "__metadata__":
                    found[name] = Tensor(str(each["dtype"]), tuple(map(int, each["shape"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            continue
    return found


def _head(file: Path) -> dict[str, dict[str, list[int]]]:
    with open(file, "rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        if size > MAX_HEAD_BYTES:
            raise ValueError("not a safetensors file")
        head: dict[str, dict[str, list[int]]] = json.loads(opened.read(size))
    return head
