"""The rows as a picture: how each compares with its goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import Row, spread

MET, MISSED, TOLD = "#2a7f62", "#c0392b", "#8a8f98"


def draw(sections: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Two panels: ratios, where more (or less) is better as the goal's mark says, and what is added in ms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for each in sections.values() for row in each]
    ratios = [row for row in rows if row.kind in ("times at least", "times at most")]
    added = [row for row in rows if row.kind == "more at most" and row.is_met is not None]
    figure, panels = pyplot.subplots(1, 2, figsize=(18, 2 + 0.32 * max(len(ratios), len(added))), layout="constrained")
    _panel(panels[0], ratios, "ours / theirs", "x")
    panels[0].set_xscale("log", base=2)
    panels[0].xaxis.set_major_formatter("{x:g}")
    _panel(panels[1], added, "ours less theirs, ms", "ms")
    panels[1].set_xscale("symlog", linthresh=0.1)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _panel(panel: object, rows: Sequence[Row], title: str, unit: str) -> None:
    """Bars from the smallest to the largest round, the median on them, the goal as a mark."""
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    for place, row in enumerate(rows):
        results = row.results()
        color = {True: MET, False: MISSED, None: TOLD}[row.is_met]
        panel.plot([min(results), max(results)], [place, place], color=color, linewidth=5, alpha=0.35)
        panel.plot([row.result], [place], "o", color=color)
        panel.annotate(
            f"{row.result:.2f} {unit}", (row.result, place), xytext=(0, 5), textcoords="offset points", fontsize=7
        )
        if row.goal is not None:
            panel.plot([row.goal], [place], "|", color="black", markersize=12)
    labels = [f"{row.measure}  |  {row.against} {spread(row.theirs)} {row.unit}" for row in rows]
    panel.set_yticks(range(len(rows)), labels, fontsize=7)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.set_title(f"{title} (mark: the goal; green: met)", fontsize=10)
