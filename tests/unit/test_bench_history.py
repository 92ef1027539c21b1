"""benchmarks/history.py: a line for each whole run, whatever rows it has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    for name in ("history", "figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_runs_follow_each_other_and_new_rows_become_columns(tmp_path: Path) -> None:
    import history
    from figures import Row

    file = tmp_path / "history.csv"
    run = {name: name for name in history.RUN}
    batch = Row("batch, 256 x 64", [90.0, 100.0, 80.0], "tok/s", "LLM.chat", [100.0, 100.0, 100.0])
    call = Row("one call, p50", [8.5], "ms", "bare", [7.5], "more at most")
    memory = Row("growth", [40.0, 55.25], "MB", kind="at most")
    history.add_line(file, run, [batch])
    history.add_line(file, run | {"commit": "next"}, [call, memory])
    first, second = history.read(file)
    assert (first["commit"], second["commit"]) == ("commit", "next")
    assert (first["batch, 256 x 64 of LLM.chat (x)"], second["batch, 256 x 64 of LLM.chat (x)"]) == ("0.9", "")
    assert (second["one call, p50 of bare (ms)"], second["growth (MB)"], first["growth (MB)"]) == ("1", "55.25", "")
    assert list(first) == list(second)
