"""What Prometheus scrapes, with its own client library."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from shared_engine import Engine, EngineState, RequestError
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig
from shared_engine.gateway.config_fields import FileFields
from shared_engine.gateway.numbers import GatewayCollector
from shared_engine.gpu import GPUMonitor, alert_counts
from shared_engine.prometheus import EnginesCollector, GPUsCollector, RequestsCollector
from shared_engine.request import tally
from shared_engine.request.tally import EngineName, Entry, Tally
from shared_engine.runtime.life_stats import EvictionReason, LifeStats
from shared_engine.stats import RequestStats
from tests.support.fake_nvml import GIB, A, B, FakeNvml, gpu
from tests.support.hand_made import MakeEngine
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def scraped(*collectors: Collector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_by_engine_and_outcome(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_tallies", {})
    engine = Engine(base_url=server.url, model="served", max_retries=0)
    engine.chat(HELLO)
    engine.chat(HELLO)
    list(engine.stream_chat(HELLO))
    server.fails(500)
    with pytest.raises(RequestError):
        engine.chat(HELLO)
    samples = scraped(RequestsCollector())

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset({"model": "served", "engine_key": server.url, **labels}.items())]

    assert value("vllm_local_requests_total", outcome="success") == 3
    assert value("vllm_local_requests_total", outcome="ServerError") == 1
    assert value("vllm_local_requests_total", outcome="cancelled") == 0
    usage = chat_answer()["usage"]
    assert value("vllm_local_tokens_total", kind="completion") == 3 * usage["completion_tokens"]
    assert value("vllm_local_request_seconds_count") == 3
    assert value("vllm_local_request_seconds_bucket", le="+Inf") == 3
    assert value("vllm_local_request_seconds_bucket", le="81.92") == 3
    assert value("vllm_local_wait_seconds_count") == 4


def test_the_numbers_of_one_scrape_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_tallies", {})
    live = tally.tally_of(EngineName("m", "k"))
    entry = Entry(None, 0.1, 0.1, 0.1, 0, None)
    live.note(entry)
    stats = Tally.stats

    def then_another_ends(self: Tally) -> RequestStats:
        found = stats(self)
        live.note(entry)
        stats(live)
        return found

    monkeypatch.setattr(Tally, "stats", then_another_ends)
    samples = scraped(RequestsCollector())
    labels = {"model": "m", "engine_key": "k"}
    assert samples["vllm_local_requests_total", frozenset({**labels, "outcome": "success"}.items())] == 1
    assert samples["vllm_local_request_seconds_count", frozenset(labels.items())] == 1


@pytest.mark.slow
def test_the_life_of_each_engine(hand_made: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    life = (
        LifeStats().started({"weights": 2.5, "import": 6.0}, is_return=False).started({"weights": 1.5}, is_return=True)
    )
    life = life.evicted(EvictionReason.IDLE).failed("died").failed("died")
    made = hand_made(state=EngineState.STANDBY, life=life)
    samples = scraped(EnginesCollector())
    key = made.directory.path.name

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset({"model": made.record.model, "engine_key": key, **labels}.items())]

    assert value("vllm_local_engine_state", state="standby") == 1
    assert value("vllm_local_engine_state", state="ready") == 0
    assert value("vllm_local_engine_starts_total") == 2
    assert value("vllm_local_engine_returns_total") == 1
    assert value("vllm_local_engine_start_seconds_total", phase="weights") == 4.0
    assert value("vllm_local_engine_evictions_total", reason="idle") == 1
    assert value("vllm_local_engine_failures_total", kind="died") == 2
    assert value("vllm_local_engine_leases") == 0


@pytest.mark.slow
def test_without_the_package_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import shared_engine.prometheus"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert "pip install 'vllm-local[prometheus]'" in done.stderr.splitlines()[-1]


def test_the_dashboard_asks_only_for_what_there_is() -> None:
    """examples/grafana.json: each metric in a query is one of ours, with a label that it has, or vLLM's."""
    dashboard = json.loads((REPOSITORY / "examples" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    ours = {
        family.name: family
        for collector in (RequestsCollector(), EnginesCollector(), GPUsCollector())
        for family in collector.collect()
        if family.name.startswith("vllm_local_")
    }
    endings = re.compile(r"_(?:total|bucket|sum|count)$")
    assert len(queries) >= 8
    used = set()
    for query in queries:
        names = re.findall(r"\bvllm_local_\w+", query)
        assert names or re.search(r"\bvllm:\w+", query), query
        for name in names:
            assert endings.sub("", name) in ours or name in ours, name
            used.add(endings.sub("", name))
    assert used == set(ours), "the dashboard shows all of them"


def test_gpus_and_the_alerts_of_their_monitors(fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A, free=1 * GIB, used=78 * GIB), gpu(B, "GB10", total=-1, busy=-1, milliwatts=-1))
    before = alert_counts().get(A, 0)
    samples = scraped(GPUsCollector(GPUMonitor(threshold=0.9)))  # one more that is above: it alerts at this scrape
    found = {(name, dict(labels)["uuid"]): value for (name, labels), value in samples.items()}
    assert found == {
        ("vllm_local_gpu_memory_used_bytes", A): 78 * GIB,
        ("vllm_local_gpu_memory_total_bytes", A): 80 * GIB,
        ("vllm_local_gpu_utilization_percent", A): 35,
        ("vllm_local_gpu_temperature_c", A): 45,
        ("vllm_local_gpu_temperature_c", B): 45,
        ("vllm_local_gpu_power_w", A): 120.5,
        ("vllm_local_gpu_alerts_total", A): before + 1,
        ("vllm_local_gpu_alerts_total", B): alert_counts().get(B, 0),
    }
    fake_gpus.show("init 9")
    assert scraped(GPUsCollector()) == {}


@pytest.mark.slow
def test_the_page_lists_all_metrics() -> None:
    of_the_gateway = GatewayCollector(Catalog(GatewayConfig({}, {}, FileFields(models={}))))
    found = {
        family.name: family.type
        for each in (RequestsCollector(), EnginesCollector(), GPUsCollector(), of_the_gateway)
        for family in each.collect()
    }
    ours = {name: kind for name, kind in found.items() if name.startswith("vllm_local_")}
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    assert dict(re.findall(r"^\| `(vllm_local_\w+)` \| (\w+) \|", page, re.MULTILINE)) == ours
