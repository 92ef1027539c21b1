"""A batch of 256 chats as bars, from the table in results/throughput.md: the README's picture.

python benchmarks/batch_plot.py
"""

from __future__ import annotations

import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
OURS, THEIRS = "#2a7f62", "#8a8f98"
SECTION = "## Batches of chats"
_CELL = re.compile(r"(?P<median>[\d,]+)(?: \(.*\))? tok/s")


def bars(table: str) -> dict[str, float]:
    """Tokens a second by contender, slowest first, from the rows of the section.

    Raises:
        ValueError: the section has no rows.
    """
    found: dict[str, float] = {}
    for line in table.partition(SECTION)[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 7 and (ours := _CELL.fullmatch(cells[1])):
            found[cells[0].removesuffix(", 256 x 64")] = _number(ours)
            if theirs := _CELL.fullmatch(cells[3]):
                found[cells[2]] = _number(theirs)
    if not found:
        raise ValueError(f"no rows in {SECTION!r}")
    return dict(sorted(found.items(), key=lambda bar: bar[1]))


def _number(cell: re.Match[str]) -> float:
    return float(cell["median"].replace(",", ""))


def draw(tokens_per_s: dict[str, float], file: Path) -> None:
    """One bar for each contender; ours in green."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(tokens_per_s) + 1), layout="constrained")
    is_ours = [name.startswith(("LangChain", "LlamaIndex")) for name in tokens_per_s]
    colors = [OURS if own else THEIRS for own in is_ours]
    drawn = axes.barh(list(tokens_per_s), list(tokens_per_s.values()), color=colors)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=4)
    figure.suptitle("256 chats of 64 tokens, tokens/s (6.6 MB model, 2 CPU cores; green: vllm-local)", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, max(tokens_per_s.values()) * 1.12)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    draw(bars((RESULTS / "throughput.md").read_text()), RESULTS / "batches.png")


if __name__ == "__main__":
    main()
