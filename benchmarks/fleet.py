"""A fleet of three real vLLM servers under mixed load of both adapters: one is killed, one stands still, one is busy,
one is drained and comes back.

Where this process may make network namespaces (as root), each server is on a host of its own, and the cable of one is
pulled. Writes benchmarks/results/fleet.md. ``make bench-fleet`` runs it: 5 minutes.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import aiohttp
from aiohttp import web
from figures import percentile
from servers import ENV_DEFAULTS, MODEL, SETTINGS

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, VLLMError
from tests.support.network_hosts import NetworkHost, network_hosts
from tests.support.plain_server import plain_servers
from tests.support.remote_server import running_app

PHASE_S = float(os.environ.get("PHASE_S", "20"))
SERVERS = 3
TOKENS = 24
SILENCE_S = 4.0
LOAD: dict[str, Any] = {**SETTINGS, "engine_args": {"kv_cache_memory_bytes": 128 << 20, "max_num_seqs": 32}}
CALL: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.0, "extra_body": {"ignore_eos": True}}


@dataclass
class Asked:
    """One request: when it began, how long it took, and what came of it."""

    began: float
    took_s: float
    outcome: str


class Load:
    """Threads that ask without a pause, until it ends."""

    def __init__(self, urls: list[str]) -> None:
        settings: dict[str, Any] = {"base_url": urls, "model": MODEL, "timeout": SILENCE_S}
        self.engine = Engine(**settings)
        self._chain, self._index = ChatVLLM(**settings, **CALL), VLLM(**settings, **CALL)
        self.asked: list[Asked] = []
        self._is_over = threading.Event()
        ways = [self._invoke, self._stream, self._index_chat, self._index_stream] * 2 + [self._batch]
        self._threads = [threading.Thread(target=self._ask, args=(way, n)) for n, way in enumerate(ways)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, way: Callable[[str], Iterator[int]], seed: int) -> None:
        chance = random.Random(seed)
        while not self._is_over.is_set():
            began, shown, outcome = time.monotonic(), 0, "answered"
            try:
                for tokens in way(f"Tell me about number {chance.randrange(1000)}."):
                    shown += tokens
                if shown <= 0:
                    outcome = "LOST: nothing came"
            except VLLMError as exc:
                outcome = f"told in mid-stream: {type(exc).__name__}" if shown else f"LOST: {exc!r:.300}"
            self.asked.append(Asked(began, time.monotonic() - began, outcome))

    def _invoke(self, text: str) -> Iterator[int]:
        yield len(str(self._chain.invoke(text).content))

    def _stream(self, text: str) -> Iterator[int]:
        for chunk in self._chain.stream(text):
            yield len(str(chunk.content))

    def _index_chat(self, text: str) -> Iterator[int]:
        from llama_index.core.llms import ChatMessage

        yield len(self._index.chat([ChatMessage(content=text)]).message.content or "")

    def _index_stream(self, text: str) -> Iterator[int]:
        for piece in self._index.stream_complete(text):
            yield len(piece.delta or "")

    def _batch(self, text: str) -> Iterator[int]:
        results = self.engine.chat_batch([[{"role": "user", "content": f"{text} {n}"}] for n in range(8)], **CALL)
        yield sum(len(result.text) for result in results)


@contextmanager
def doorman(url: str) -> Iterator[tuple[str, threading.Event]]:
    """A proxy before a server that answers 503 while the event is set, as a server does that has no room."""
    is_busy = threading.Event()

    async def forward(request: web.Request) -> web.StreamResponse:
        if is_busy.is_set():
            return web.json_response({"error": {"message": "no room", "code": 503}}, status=503)
        session: aiohttp.ClientSession = request.app["session"]
        async with session.request(request.method, url + request.path_qs, data=await request.read()) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    async def session_of(app: web.Application) -> Any:
        async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
            app["session"] = session
            yield

    app = web.Application()
    app.cleanup_ctx.append(session_of)
    app.router.add_route("*", "/{path:.*}", forward)
    with running_app(app) as front:
        yield front, is_busy


def main() -> None:
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts: list[NetworkHost] = []
        try:
            hosts = stack.enter_context(network_hosts(SERVERS))
            where = "each on a host of its own (network namespaces)"
        except OSError as exc:
            where = f"all on one host (no network namespaces: {exc})"
        print(where, flush=True)
        first, second, third = stack.enter_context(plain_servers(SERVERS, LOAD, folder, hosts=hosts))
        front, is_busy = stack.enter_context(doorman(third.url))
        load = Load([first.url, second.url, front])
        marks: list[tuple[str, float]] = []

        def phase(name: str) -> None:
            print(name, flush=True)
            marks.append((name, time.monotonic()))
            time.sleep(PHASE_S)

        try:
            phase("undisturbed")
            first.signal(signal.SIGKILL)
            phase("one of three is killed")
            second.signal(signal.SIGSTOP)
            phase("another one stands still")
            second.signal(signal.SIGCONT)
            phase("it goes on")
            is_busy.set()
            phase("the third one answers 503")
            is_busy.clear()
            load.engine.fleet.drain(second.url)
            phase("the second is drained")
            load.engine.fleet.remove(second.url)
            load.engine.fleet.add(second.url)
            phase("it is added again")
            if hosts:
                hosts[1].unplug()
                phase("the cable of its host is pulled")
                hosts[1].plug_in()
                phase("it is plugged in again")
        finally:
            load.end()
        write(load, marks, where)


def write(load: Load, marks: list[tuple[str, float]], where: str) -> None:
    lines = [
        "# A fleet",
        "",
        f"Three plain vLLM servers on 2 cores, {where}, {PHASE_S:g} s each; LangChain, LlamaIndex and batches ask "
        f"without a pause; silence limit {SILENCE_S:g} s. `make bench-fleet`.",
        "",
        "| while | requests | told in mid-stream | lost | p50, s | p99, s |",
        "|---|---|---|---|---|---|",
    ]
    ends = [*(began for _, began in marks[1:]), float("inf")]
    for (name, began), ended in zip(marks, ends, strict=True):
        asked = [each for each in load.asked if began <= each.began < ended]
        took = [each.took_s for each in asked if each.outcome == "answered"]
        told = sum(each.outcome.startswith("told") for each in asked)
        lost = [each.outcome for each in asked if each.outcome.startswith("LOST")]
        times = f"{percentile(took, 50):.2f} | {percentile(took, 99):.2f}"
        lines.append(f"| {name} | {len(asked)} | {told} | {len(lost)} | {times} |")
        for words in sorted(set(lost)):
            print(f"  {name}: {words}", flush=True)
    stats = load.engine.stats().requests
    lines += ["", f"Tries that no caller saw: {stats.retries}. Errors: {dict(stats.errors) or 'none'}."]
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "fleet.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
