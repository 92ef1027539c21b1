"""Tables for people: columns with a head, cut where they would be wider than a terminal. Prints nothing itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Sequence
from typing import Any

from shared_engine.observe.log_reader import printable

PIPED_WIDTH = 100
"""Of a table that goes to no terminal."""


def table(
    rows: Sequence[Sequence[str]], *, numbers: Collection[int] = (), least: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """A line for each row, the head first.

    Args:
        numbers: columns that stand to the right.
        least: columns that make room for the others, one after the other, and the width that each keeps.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for column, width in least:
        excess = max(0, sum(widths) + 2 * len(widths) - 2 - table_width())
        widths[column] -= min(excess, max(0, widths[column] - width))
    return [
        "  ".join(
            cut(cell, width).rjust(width) if column in numbers else cut(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table_width() -> int:
    """The columns of the terminal."""
    return shutil.get_terminal_size((PIPED_WIDTH, 0)).columns


def cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def fitted(text: str) -> str:
    """As much of the text as the terminal shows without moving: its first lines, and of these their beginnings."""
    lines = text.split("\n")
    width, height = shutil.get_terminal_size((PIPED_WIDTH, len(lines) + 1))
    shown = lines if len(lines) < height else [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    return "\n".join(cut(line, width) for line in shown)


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


def as_json(value: Any) -> str:
    """For programs: infinity, which JSON has no word for, is null."""
    return json.dumps(_finite(value), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
