"""What ``/metrics`` shows: the requests that came through here, and the engines of this machine."""

from __future__ import annotations

from shared_engine.prometheus import EnginesCollector, RequestsCollector  # first: it says what is missing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest  # isort: skip


def metrics_page() -> tuple[bytes, str]:
    """The page and its type. Asks each engine that is up, and waits for it."""
    registry = CollectorRegistry()
    registry.register(RequestsCollector())
    registry.register(EnginesCollector())
    return generate_latest(registry), CONTENT_TYPE_LATEST
