"""What requests and starts have come to: in numbers, and as a scraper reads them."""

import contextlib
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from shared_engine import ContextLengthError, Engine
from shared_engine.prometheus import EnginesCollector, RequestsCollector

# On a GPU, with a model of your own: Engine(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
engine = Engine(model=model, gpu_memory_utilization=0.3)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


engine.chat_batch([ask("What is the capital of France?")] * 8)
list(engine.stream_chat(ask("Count from 1 to 10.")))
with contextlib.suppress(ContextLengthError):
    engine.chat(ask("word " * 5_000))

stats = engine.stats()
print(f"{stats.requests.successes} answers, {stats.requests.context_overflows} prompt too long")
print(f"{stats.requests.completion_tokens} tokens, p95 {stats.requests.latency.p95_s:.2f} s")
assert stats.life is not None  # it is, of a remote server only
print(f"{stats.life.starts} start, of which loading weights {stats.life.start_seconds.get('weights', 0):.1f} s")

registry = CollectorRegistry()  # an app registers them with prometheus_client.REGISTRY
registry.register(RequestsCollector())
registry.register(EnginesCollector())
scraped = generate_latest(registry).decode().splitlines()
print(next(line for line in scraped if line.startswith("vllm_local_requests_total{") and 'outcome="success"' in line))
