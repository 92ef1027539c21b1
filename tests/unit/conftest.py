"""What tests of several files here share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hand_made import KEY, HandMade, MakeEngine, fake_nvidia_smi, own_root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PATH", fake_nvidia_smi(tmp_path / "no-gpu", "", 9))
    with own_root(monkeypatch) as folder:
        yield folder


@pytest.fixture
def hand_made(root: Path) -> Iterator[MakeEngine]:
    made: list[HandMade] = []

    def make(key: str = KEY, supervisor: str | None = "obey", **fields: Any) -> HandMade:
        made.append(HandMade(root, key, supervisor, **fields))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
