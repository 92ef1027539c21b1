"""What ``/metrics`` shows: requests that came through here, those that wait now, the engines of this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from shared_engine.gateway.catalog import Catalog
from shared_engine.prometheus import EnginesCollector, RequestsCollector  # first: it says what is missing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest  # isort: skip
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric  # isort: skip
from prometheus_client.registry import Collector  # isort: skip


def metrics_page(catalog: Catalog) -> tuple[bytes, str]:
    """The page and its type. Asks each engine that is up, and waits for it."""
    registry = CollectorRegistry()
    registry.register(RequestsCollector())
    registry.register(EnginesCollector())
    registry.register(GatewayCollector(catalog))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class GatewayCollector(Collector):
    """``vllm_local_gateway_*``: what is in the gateway now, by the model's name there."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        requests = GaugeMetricFamily(
            "vllm_local_gateway_requests", "Requests that run, and that wait.", labels=("model", "state")
        )
        longest = GaugeMetricFamily(
            "vllm_local_gateway_longest_wait_seconds", "Of those that wait now, the oldest.", labels=("model",)
        )
        turns = CounterMetricFamily(
            "vllm_local_gateway_turns_given", "How often it had to wait so that another got room.", labels=("model",)
        )
        found = list(self._catalog.in_flight)
        counts = Counter((each.model, each.is_waiting) for each in found)
        for id_, model in self._catalog.models.items():
            for state, is_waiting in (("running", False), ("waiting", True)):
                requests.add_metric((id_, state), counts[id_, is_waiting])
            since = min((each.began for each in found if each.model == id_ and each.is_waiting), default=None)
            longest.add_metric((id_,), 0.0 if since is None else time.monotonic() - since)
            turns.add_metric((id_,), model.turns_given)
        yield from (requests, longest, turns)
