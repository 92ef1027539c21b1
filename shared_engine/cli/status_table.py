"""Engines as a table for people: what ``vllm-local status`` shows. It prints nothing itself."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence

from shared_engine.cli.table import duration, size, table, table_width
from shared_engine.observe.differences import differences
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.log_reader import printable
from shared_engine.observe.processes import ProcessNode

LEAST_WIDTHS = ((0, 20), (2, 12))


def status_table(engines: Sequence[EngineInfo], *, tree: bool) -> Iterator[str]:
    """The lines: a head, and for each engine a line, what sets it apart from others of its model, its last error, and
    with ``tree`` its processes.
    """
    has_gpu = any(engine.gpu_memory_bytes is not None for engine in engines)
    rows = [
        ("ENGINE", "KEY", "STATE", "FOR", "RAM", "GPU", "LEASES", "IDLE", "STARTS"),
        *(_row(engine) for engine in engines),
    ]
    if not has_gpu:
        rows = [row[:5] + row[6:] for row in rows]
    apart = differences(engines)
    head, *lines = table(rows, numbers=range(3, len(rows[0])), least=LEAST_WIDTHS)
    yield head
    for engine, line in zip(engines, lines, strict=True):
        yield line
        if engine.key in apart:
            yield from _indented(apart[engine.key])
        if engine.last_error:
            yield from _indented(f"last error: {engine.last_error.splitlines()[0]}")
        if tree and engine.processes is not None:
            yield from _tree(engine.processes, "  ", "  ")


def _indented(text: str) -> list[str]:
    """All of a long line, in lines that end between words."""
    return textwrap.wrap(printable(text), table_width(), initial_indent="  ", subsequent_indent="    ")


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


def _tree(process: ProcessNode, first: str, rest: str) -> Iterator[str]:
    gpu = "" if process.gpu_memory_bytes is None else f", {size(process.gpu_memory_bytes)} GPU"
    yield f"{first}{process.pid} {process.name} ({size(process.memory_bytes)}{gpu})"
    for child in process.children:
        is_last = child is process.children[-1]
        yield from _tree(child, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))
