"""Rounds in alternating order, and what is made of them: rows with a goal, and the Markdown table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["times at least", "times at most", "more at most", "at most"]

# vLLM's workers poll their queues for a second after each request, on the cores that the next contender's engine works
# on (NOTES.md, two engines on one CPU).
REST_S = 1.2


def say(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Contender:
    """Something that is measured in rounds.

    Attributes:
        run: one round; its figure.
        rounds: how many it takes part in, without one to warm up; None for all. For the slow ones.
        warm_up: what such a one does instead, before the first round.
    """

    run: Callable[[], float]
    rounds: int | None = None
    warm_up: Callable[[], object] | None = None


def race(contenders: Mapping[str, Contender], rounds: int, unit: str, rest_s: float = REST_S) -> dict[str, list[float]]:
    """The figures of each contender, round by round: forwards, backwards, forwards, after one to warm up."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(-1, rounds):
        for name in list(contenders)[:: 1 if index % 2 == 0 else -1]:
            contender = contenders[name]
            if contender.rounds is not None and not 0 <= index < contender.rounds:
                if index < 0 and contender.warm_up is not None:
                    contender.warm_up()
                continue
            figure = contender.run()
            if index >= 0:
                figures[name].append(figure)
                say(f"  round {index + 1} of {rounds}: {name}: {figure:,.0f} {unit}")
            time.sleep(rest_s)
    return figures


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against another, and the goal.

    Attributes:
        kind: how the two are compared; ``at most`` looks at ours alone, and at the worst of it.
        goal: None where it is only told.
        noise: how much theirs differs from itself, as a difference or as a share of it; where that is more than the
            goal allows, nothing is decided.
    """

    measure: str
    ours: Sequence[float]
    unit: str
    against: str = ""
    theirs: Sequence[float] = ()
    kind: Kind = "times at least"
    goal: float | None = None
    noise: float = 0.0

    def results(self) -> list[float]:
        """Ours compared with theirs of the same round; with their median, where they took part in fewer."""
        if self.kind == "at most":
            return list(self.ours)
        theirs = self.theirs
        if len(theirs) != len(self.ours):
            theirs = [statistics.median(self.theirs)] * len(self.ours)
        pairs = zip(self.ours, theirs, strict=True)
        if self.kind == "more at most":
            return [own - other for own, other in pairs]
        return [own / other for own, other in pairs]

    @property
    def result(self) -> float:
        return max(self.results()) if self.kind == "at most" else statistics.median(self.results())

    @property
    def is_met(self) -> bool | None:
        if self.goal is None or self.is_drowned:
            return None
        return self.result >= self.goal if self.kind == "times at least" else self.result <= self.goal

    @property
    def is_drowned(self) -> bool:
        """What ours adds can't be told from what theirs differs from itself."""
        if self.goal is None:
            return False
        return abs(self.noise) > (self.goal if self.kind == "more at most" else abs(self.goal - 1))

    def cells(self) -> list[str]:
        met = {True: "yes", False: "**no**", None: "noise" if self.is_drowned else ""}[self.is_met]
        goal = "" if self.goal is None else self._compared(self.goal, "≥ " if self.kind == "times at least" else "≤ ")
        theirs = f"{spread(self.theirs)} {self.unit}" if self.theirs else ""
        result = self._compared(self.result)
        if len(self.results()) > 1:
            result += f" ({min(self.results()):.3g} to {max(self.results()):.3g})"
        return [self.measure, f"{spread(self.ours)} {self.unit}", self.against, theirs, result, goal, met]

    def _compared(self, value: float, sign: str = "") -> str:
        if self.kind == "at most":
            return f"{sign}{value:.3g} {self.unit}"
        return f"{sign}{value:+.3g} {self.unit}" if self.kind == "more at most" else f"{sign}{value:.3g}x"


def spread(values: Sequence[float]) -> str:
    """Median, and from where to where."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)]


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    head = ["measure", "ours", "against", "theirs", "ours / theirs", "goal", "met"]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *(row.cells() for row in rows))]
