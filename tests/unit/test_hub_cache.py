"""How much of a download is here, and of how much: read off what huggingface_hub has on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared_engine.machine.hub_cache import bytes_of_download, bytes_on_disk

COMMIT = "0123456789abcdef"
SHARDS = {f"model-0000{number}-of-00003.safetensors": (f"shard{number}", 1000) for number in (1, 2, 3)}
FILES = {
    "config.json": ("config", 10),
    **SHARDS,
    "consolidated.safetensors": ("whole", 3000),
    "original/model-00001-of-00003.safetensors": ("other", 5000),
    "pytorch_model.bin": ("bin", 3000),
}


def listed(cached: Path, files: dict[str, tuple[str, int]] = FILES, **more: Any) -> None:
    """As huggingface_hub lists a commit: small files by git's name for them, large ones by their hash."""
    described = {
        path: {"size": size, "blob_id": blob} if size < 100 else
        {"size": 130, "blob_id": "a pointer", "lfs_sha256": blob, "lfs_size": size}
        for path, (blob, size) in files.items()
    }  # fmt: skip
    (cached / "trees").mkdir(parents=True, exist_ok=True)
    (cached / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": described, **more}))
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / "main").write_text(COMMIT)


def came(cached: Path, name: str, size: int, at: float = 0) -> None:
    blob = cached / "blobs" / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(b"x" * size)
    os.utime(blob, (at, at))


def test_of_several_forms_of_the_weights_those_count_that_have_begun_to_come(tmp_path: Path) -> None:
    listed(tmp_path)
    came(tmp_path, "config", 10)
    assert bytes_of_download(tmp_path, None) == (10, 10)
    came(tmp_path, "shard1.5f3a.incomplete", 400)
    assert bytes_of_download(tmp_path, None) == (410, 3010), "all shards come, and nothing else"
    came(tmp_path, "shard1", 1000)
    (tmp_path / "blobs" / "shard1.5f3a.incomplete").unlink()
    came(tmp_path, "shard3.incomplete", 100)
    assert bytes_of_download(tmp_path, "main") == bytes_of_download(tmp_path, COMMIT) == (1110, 3010)


def test_what_an_ended_attempt_has_left_does_not_count(tmp_path: Path) -> None:
    listed(tmp_path)
    came(tmp_path, "whole.aaaa.incomplete", 900, at=1)
    came(tmp_path, "whole.bbbb.incomplete", 200, at=2)
    came(tmp_path, "of another commit", 5000)
    assert bytes_of_download(tmp_path, None) == (200, 3000)
    assert bytes_on_disk(tmp_path) == 6100, "whatever is written is a sign of life"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 2, "files": {}}', '{"format_version": 1}'])
def test_without_a_list_that_is_understood_nothing_is_known(tmp_path: Path, text: str) -> None:
    listed(tmp_path)
    came(tmp_path, "config", 5)
    assert bytes_of_download(tmp_path, "another revision") is None
    (tmp_path / "trees" / f"{COMMIT}.json").write_text(text)
    assert bytes_of_download(tmp_path, None) is None
    listed(tmp_path, format_version=2)
    assert bytes_of_download(tmp_path, None) is None
    listed(tmp_path, files={})
    assert bytes_of_download(tmp_path, None) is None


def test_nothing_here_is_nothing_known(tmp_path: Path) -> None:
    assert bytes_of_download(tmp_path, None) is None
    listed(tmp_path)
    assert bytes_of_download(tmp_path, None) is None
    assert bytes_on_disk(tmp_path) == 0
