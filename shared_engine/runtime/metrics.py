"""The text of vLLM's /metrics (Prometheus), read once for all who look at it. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# A label's value may hold spaces and braces: a model's name is one.
_SAMPLE = re.compile(r"^vllm:(\w+)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_SHARE = "_perc"
_OF_HISTOGRAMS = ("_bucket", "_created", "_sum", "_count", "_info")


class Sample(NamedTuple):
    """One number of vLLM's metrics.

    Attributes:
        name: without ``vllm:``, such as ``num_requests_running``.
        labels: as written, such as ``engine="0",model_name="m"``.
    """

    name: str
    labels: str
    value: float

    def label(self, name: str) -> str:
        """The value of one label; empty where the sample has none of that name."""
        found = re.search(rf'(?:^|,){name}="((?:[^"\\]|\\.)*)"', self.labels)
        return found.group(1) if found else ""


def samples(text: str) -> Iterator[Sample]:
    """All samples of vLLM's own metrics, in the order of the text."""
    for name, labels, value in _SAMPLE.findall(text):
        yield Sample(name, labels, float(value))


def counters(text: str) -> dict[str, float]:
    """Each counter, summed over its labels and without ``_total``."""
    sums: dict[str, float] = {}
    for sample in samples(text):
        if sample.name.endswith("_total"):
            name = sample.name.removesuffix("_total")
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def totals(text: str) -> dict[str, float]:
    """Each gauge and counter, summed over its labels and without ``_total``; histograms are left out.

    Of a share (``kv_cache_usage_perc``), of which each engine core of a data-parallel server has one, the mean.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for sample in samples(text):
        if not sample.name.endswith(_OF_HISTOGRAMS):
            name = sample.name.removesuffix("_total")
            sums[name] = sums.get(name, 0.0) + sample.value
            counts[name] = counts.get(name, 0) + 1
    return {name: value / counts[name] if name.endswith(_SHARE) else value for name, value in sums.items()}


def requests_in(text: str) -> tuple[int, int]:
    """How many requests run in the server, and how many wait in its queue."""
    counts = totals(text)
    return int(counts.get("num_requests_running", 0)), int(counts.get("num_requests_waiting", 0))
