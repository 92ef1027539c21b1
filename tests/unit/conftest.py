"""What tests of several files here share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine.machine import nvml
from tests.support.hand_made import KEY, HandMade, MakeEngine, own_root


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(nvml, "LIBRARY", "no-driver.so")
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
