"""Engines as a table for people, of 100 columns at most: what ``vllm-local status`` shows. It prints nothing itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.log_reader import printable
from shared_engine.observe.processes import ProcessNode

TABLE_WIDTH = 100
LEAST_WIDTHS = ((0, 20), (2, 12))


def status_table(engines: Sequence[EngineInfo], *, tree: bool) -> Iterator[str]:
    """The lines: a head, and for each engine a line, its last error, and with ``tree`` its processes."""
    has_gpu = any(engine.gpu_memory_bytes is not None for engine in engines)
    rows = [
        ("ENGINE", "KEY", "STATE", "FOR", "RAM", "GPU", "LEASES", "IDLE", "STARTS"),
        *(_row(engine) for engine in engines),
    ]
    if not has_gpu:
        rows = [row[:5] + row[6:] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for column, least in LEAST_WIDTHS:  # names, then the words of a start, make room for the numbers
        excess = max(0, sum(widths) + 2 * len(widths) - 2 - TABLE_WIDTH)
        widths[column] -= min(excess, max(0, widths[column] - least))
    yield _line(rows[0], widths)
    for engine, row in zip(engines, rows[1:], strict=True):
        yield _line(row, widths)
        if engine.last_error:
            yield _cut(f"  last error: {engine.last_error.splitlines()[0]}", TABLE_WIDTH)
        if tree and engine.processes is not None:
            yield from _tree(engine.processes, "  ", "  ")


def _row(engine: EngineInfo) -> tuple[str, ...]:
    state = engine.state.value + (f": {engine.progress}" if engine.progress else "")
    return (
        engine.name + (" (pinned)" if engine.pinned else ""),
        engine.short_key,
        state,
        duration(time.time() - engine.state_since) if engine.state_since else "-",
        size(engine.memory_bytes),
        size(engine.gpu_memory_bytes),
        str(engine.leases),
        "-" if engine.idle_for_s is None else duration(engine.idle_for_s),
        str(engine.starts),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    # Words to the left, numbers to the right.
    return "  ".join(
        _cut(cell, width).ljust(width) if column < 3 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _tree(process: ProcessNode, first: str, rest: str) -> Iterator[str]:
    gpu = "" if process.gpu_memory_bytes is None else f", {size(process.gpu_memory_bytes)} GPU"
    yield f"{first}{process.pid} {process.name} ({size(process.memory_bytes)}{gpu})"
    for child in process.children:
        is_last = child is process.children[-1]
        yield from _tree(child, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def duration(seconds: float) -> str:
    """``45s``, ``12m``, ``3h05m``, ``2d03h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes // 1440}d{minutes // 60 % 24:02d}h"


def size(count: int | None) -> str:
    """``21M``, ``1.4G``; ``-`` where it is not known."""
    if count is None:
        return "-"
    return f"{count / (1 << 20):.0f}M" if count < 1 << 30 else f"{count / (1 << 30):.1f}G"
