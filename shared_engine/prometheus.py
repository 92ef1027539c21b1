"""Prometheus metrics: the requests of this process, and the engines of this machine.

    from prometheus_client import REGISTRY
    from shared_engine.prometheus import EnginesCollector, GPUsCollector, RequestsCollector

    REGISTRY.register(RequestsCollector())  # in each process; two engines have two values of the label engine_key
    REGISTRY.register(EnginesCollector())   # in one process of the machine, such as a sidecar
    REGISTRY.register(GPUsCollector())      # there too

Needs ``prometheus_client`` (``pip install 'vllm-local[prometheus]'``). Numbers are read when they are scraped: nothing
runs in between. Several processes of one server (gunicorn's workers) each have requests of their own. They share
engines, whose numbers are read from the engines' own records, and so never counted twice.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

from shared_engine.errors import SettingsError
from shared_engine.gpu import GPUMonitor, alert_counts
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import find_engines
from shared_engine.request.routes import METRICS
from shared_engine.request.tally import FINEST_S, Durations, EngineName, tallies
from shared_engine.runtime.record import EngineState

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.parser import text_string_to_metric_families
    from prometheus_client.registry import Collector
except ImportError as exc:
    raise SettingsError(
        "Prometheus metrics need the package prometheus_client: pip install 'vllm-local[prometheus]'"
    ) from exc

LABELS = ("model", "engine_key")
BOUNDS_S = tuple(FINEST_S * 2**power for power in range(14))
"""Upper ends of the buckets of all histograms: 10 ms to 82 s, as OpenTelemetry's conventions have them."""
SCRAPE_TIMEOUT_S = 2.0


class RequestsCollector(Collector):
    """``vllm_local_request*``: what ``Engine.stats().requests`` has, for each engine that this process has asked.

    A remote server's ``engine_key`` is its URL.
    """

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("vllm_local_requests", "Requests that have ended.", labels=(*LABELS, "outcome"))
        retries = CounterMetricFamily("vllm_local_request_retries", "Tries after the first.", labels=LABELS)
        tokens = CounterMetricFamily("vllm_local_tokens", "Tokens of whole answers.", labels=(*LABELS, "kind"))
        durations = {
            "latency": _histogram("vllm_local_request_seconds", "From the call to the end of its answer."),
            "time_to_first_token": _histogram("vllm_local_time_to_first_token_seconds", "Of streams."),
            "wait": _histogram("vllm_local_wait_seconds", "Until the engine could be asked: nothing, or a start."),
        }
        for name, live in sorted(tallies().items()):
            tally, labels = live.snapshot(), _labels(name)
            stats = tally.stats()
            outcomes = {"success": stats.successes, "cancelled": stats.cancelled, **stats.errors}
            for outcome, count in outcomes.items():
                requests.add_metric((*labels, outcome), count)
            retries.add_metric(labels, stats.retries)
            for kind in ("prompt", "completion", "cached"):
                tokens.add_metric((*labels, kind), getattr(stats, f"{kind}_tokens"))
            for attribute, histogram in durations.items():
                _add_durations(histogram, labels, getattr(tally, attribute))
        yield from (requests, retries, tokens, *durations.values())


class EnginesCollector(Collector):
    """``vllm_local_engine_*``: the life of each engine of this user on this machine; and ``vllm:*``, vLLM's own metrics
    of those that are up, with ``engine_key`` beside vLLM's labels.

    Reads the engines' records, and asks each server that is up. Starts nothing and keeps nothing awake.
    """

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        engines = find_engines()
        yield from _life(engines)
        yield from _of_vllm(engines)


class GPUsCollector(Collector):
    """``vllm_local_gpu_*``: the GPUs that a monitor looks at, at each scrape, and the alerts of all monitors of this
    process. Nothing where there is no GPU.

    Args:
        monitor: whose alerts are given at scrapes, too. Default: one of all GPUs that this process may use.
    """

    def __init__(self, monitor: GPUMonitor | None = None) -> None:
        self._monitor = monitor or GPUMonitor()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        labels = ("uuid", "name")
        families = {
            "memory_used_bytes": "Memory that processes have.",
            "memory_total_bytes": "All of its memory.",
            "utilization_percent": "Share of the last moments in which it computed.",
            "temperature_c": "In degrees Celsius.",
            "power_w": "In watts.",
        }
        gauges = {
            name: GaugeMetricFamily(f"vllm_local_gpu_{name}", words, labels=labels) for name, words in families.items()
        }
        alerts = CounterMetricFamily("vllm_local_gpu_alerts", "Alerts of this process's monitors.", labels=labels)
        found, counts = self._monitor.get_stats(), alert_counts()
        for stats in found:
            for name, gauge in gauges.items():
                if (value := getattr(stats, name)) is not None:
                    gauge.add_metric((stats.uuid, stats.name), value)
            alerts.add_metric((stats.uuid, stats.name), counts.get(stats.uuid, 0))
        yield from (*gauges.values(), alerts)


def _life(engines: list[EngineInfo]) -> Iterator[Metric]:
    def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"vllm_local_engine_{name}", words, labels=(*LABELS, *labels))

    def counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"vllm_local_engine_{name}", words, labels=(*LABELS, *labels))

    state = gauge("state", "1 for the state that the engine is in.", "state")
    leases = gauge("leases", "Processes that have requests in flight.")
    memory = gauge("memory_bytes", "RAM of all its processes.")
    gpu_memory = gauge("gpu_memory_bytes", "GPU memory of all its processes.")
    starts = counter("starts", "Starts that went well.")
    returns = counter("returns", "Starts from standby, and wakes from sleep.")
    seconds = counter("start_seconds", "How long starts and wakes took, by phase.", "phase")
    evictions = counter("evictions", "How often the model left memory, by reason.", "reason")
    failures = counter("failures", "Starts that failed and servers that died, by kind.", "kind")
    for engine in engines:
        labels = (engine.model or "", engine.key or "")
        for each in EngineState:
            state.add_metric((*labels, each.value), float(engine.state is each))
        leases.add_metric(labels, engine.leases)
        for sizes, size in ((memory, engine.memory_bytes), (gpu_memory, engine.gpu_memory_bytes)):
            if size is not None:
                sizes.add_metric(labels, size)
        starts.add_metric(labels, engine.life.starts)
        returns.add_metric(labels, engine.life.returns)
        for family, counts in (
            (seconds, engine.life.start_seconds),
            (evictions, engine.life.evictions),
            (failures, engine.life.failures),
        ):
            for value, count in counts.items():
                family.add_metric((*labels, value), count)
    yield from (state, leases, memory, gpu_memory, starts, returns, seconds, evictions, failures)


def _of_vllm(engines: list[EngineInfo]) -> Iterator[Metric]:
    """Families of one name, from several engines, become one."""
    families: dict[str, Metric] = {}
    for engine in engines:
        if engine.socket is None or engine.state is not EngineState.READY:
            continue
        for family in text_string_to_metric_families(_scraped(engine.socket)):
            if not family.name.startswith("vllm:"):
                continue
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "engine_key": engine.key or ""}
                known.add_sample(sample.name, labels, sample.value)
    yield from families.values()


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine", timeout=SCRAPE_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _scraped(path: str) -> str:
    """Empty where the server has none, or has just ended: the others' numbers are worth having all the same."""
    connection = _OverSocket(path)
    try:
        connection.request("GET", METRICS)
        response = connection.getresponse()
        body = response.read()
        return body.decode(errors="replace") if response.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _labels(name: EngineName) -> tuple[str, str]:
    return (name.model, name.engine)


def _histogram(name: str, words: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, words, labels=LABELS)


def _add_durations(family: HistogramMetricFamily, labels: tuple[str, str], durations: Durations) -> None:
    buckets = [(f"{bound:g}", float(durations.count_within(bound))) for bound in BOUNDS_S]
    family.add_metric(labels, [*buckets, ("+Inf", float(durations.count))], durations.sum_s)
