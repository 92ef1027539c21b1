"""What the gateway adds to the engine's own socket, and what vLLM's router adds to the same engine.

One engine on tiny_chat is asked by bare aiohttp: by its own Unix socket, through ``vllm-local serve``, by its own TCP
port, and through vllm-router before that. Writes benchmarks/results/gateway.md. ``make bench-gateway`` runs it, in 7
minutes; ROUNDS, SIZE and ONLY (streams, call, short) make it shorter.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from bare import Bare
from figures import Contender, Row, race, say, table
from latency import measure_calls
from questions import questions
from servers import SETTINGS, machine, model_name, runtime_directory

from shared_engine import Engine
from shared_engine.launch.interpreter import find_interpreter
from tests.support.gateways import gateway
from tests.support.vllm_router import ROUTERS, vllm_router

ROUNDS = int(os.environ.get("ROUNDS", "4"))
SIZE = float(os.environ.get("SIZE", "1"))
ONLY = os.environ.get("ONLY", "")
STREAMS, STREAM_TOKENS = 256, 64
SHORT, SHORT_AT_ONCE, SHORT_TOKENS = 10_000, 64, 1
CALLS = 100
SOCKET, GATEWAY, TCP, ROUTER = "the engine's socket", "vllm-local serve", "the engine's TCP port", "vllm-router"
AGAIN = "the engine's socket again (what is noise)"


def sized(count: int, least: int = 8) -> int:
    return max(least, round(count * SIZE))


@dataclass
class Way:
    """To the engine.

    Attributes:
        pids: of what stands between.
        cpu_s: processor time that this has taken, by what was done.
    """

    bare: Bare
    pids: tuple[int, ...] = ()
    cpu_s: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def counted(self, what: str, count: int) -> Iterator[None]:
        """Note microseconds for each of ``count`` things."""
        before = sum(map(cpu_of, self.pids))
        yield
        if self.pids:
            took_us = (sum(map(cpu_of, self.pids)) - before) / count * 1e6
            self.cpu_s.setdefault(what, []).append(took_us)


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_with(word: str) -> tuple[int, ...]:
    """Children of this process whose command has this in it."""
    listed = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return tuple(pid for pid in map(int, listed.split()) if word in Path(f"/proc/{pid}/cmdline").read_text())


@dataclass
class Bench:
    loop: asyncio.Runner
    ways: Mapping[str, Way]

    # ---- what is measured

    def streams(self) -> list[Row]:
        count = sized(STREAMS)
        texts = questions(count)

        def rate(way: Way) -> float:
            async def gathered() -> int:
                streamed = await asyncio.gather(*(way.bare.stream(text, STREAM_TOKENS) for text in texts))
                return sum(each.completion_tokens for each in streamed)

            began = time.perf_counter()
            with way.counted("token", count * STREAM_TOKENS):
                tokens = self.loop.run(gathered())
            assert tokens == count * STREAM_TOKENS, f"{tokens} tokens came"
            return tokens / (time.perf_counter() - began)

        return self.compared(f"{count} streams of {STREAM_TOKENS} tokens", "tok/s", rate, 0.9)

    def short(self) -> list[Row]:
        each_round = sized(SHORT // ROUNDS, SHORT_AT_ONCE)
        texts = questions(each_round)

        def rate(way: Way) -> float:
            async def asked() -> None:
                left = iter(texts)

                async def asker() -> None:
                    for text in left:
                        answer = await way.bare.chat(text, SHORT_TOKENS)
                        assert answer.completion_tokens == SHORT_TOKENS

                await asyncio.gather(*(asker() for _ in range(SHORT_AT_ONCE)))

            began = time.perf_counter()
            with way.counted("request", each_round):
                self.loop.run(asked())
            return each_round / (time.perf_counter() - began)

        what = f"{each_round * ROUNDS:,} requests of {SHORT_TOKENS} token, {SHORT_AT_ONCE} at once"
        return self.compared(what, "requests/s", rate, 0.85)

    def compared(self, what: str, unit: str, rate: Callable[[Way], float], goal: float) -> list[Row]:
        contenders = {name: Contender(partial(rate, way)) for name, way in self.ways.items()}
        figures = race(contenders, ROUNDS, unit)
        rows = [Row(f"{what}: {GATEWAY}", figures[GATEWAY], unit, SOCKET, figures[SOCKET], goal=goal)]
        rows += [
            Row(f"{what}: {name}", figures[name], unit, against, figures[against])
            for name, against in ((ROUTER, TCP), (TCP, SOCKET))
            if name in figures
        ]
        return rows

    def call(self) -> list[Row]:
        """One at a time; the engine's own socket twice, to see what is noise."""

        def asked(way: Way) -> Callable[[], None]:
            return lambda: assert_one(self.loop.run(way.bare.chat("Hello number 0", 1)).completion_tokens)

        calls = {name: asked(way) for name, way in self.ways.items()} | {AGAIN: asked(self.ways[SOCKET])}
        taken = measure_calls(calls, sized(CALLS), ROUNDS)
        figures = {name: [statistics.median(of_round) for of_round in rounds] for name, rounds in taken.items()}
        what = "one call of 1 token, p50"
        again = Row(f"{what}: {AGAIN}", figures[AGAIN], "ms", SOCKET, figures[SOCKET], "more at most")
        noise = max(map(abs, again.results()))
        added = partial(Row, unit="ms", kind="more at most")
        rows = [
            added(f"{what}: {GATEWAY}", figures[GATEWAY], against=SOCKET, theirs=figures[SOCKET], goal=1, noise=noise)
        ]
        rows += [
            added(f"{what}: {name}", figures[name], against=against, theirs=figures[against])
            for name, against in ((ROUTER, TCP), (TCP, SOCKET))
            if name in figures
        ]
        return [*rows, again]

    def processor_time(self) -> list[Row]:
        return [
            Row(f"processor time for each {what}: {name}", values, "µs", kind="at most")
            for name, way in self.ways.items()
            for what, values in way.cpu_s.items()
        ]


def assert_one(tokens: int) -> None:
    assert tokens == 1


@contextmanager
def ways_to(engine: Engine, folder: Path, loop: asyncio.Runner) -> Iterator[dict[str, Way]]:
    """All are warm."""
    model, status = model_name(SETTINGS), engine.status()
    (url,) = (each.removesuffix("/v1") for each in status.urls)
    with ExitStack() as stack:
        gate = stack.enter_context(gateway({"models": {"tiny": SETTINGS}}, folder))
        ways = {
            SOCKET: Way(Bare(model, socket=status.socket)),
            GATEWAY: Way(Bare("tiny", url=gate.url), (gate.process.pid,)),
            TCP: Way(Bare(model, url=url)),
        }
        if ROUTERS.is_dir():
            router = stack.enter_context(vllm_router([url], folder, "--log-level", "error"))
            ways[ROUTER] = Way(Bare(model, url=router), children_with(str(ROUTERS)))
        for way in ways.values():
            stack.callback(lambda each: loop.run(each.close()), way.bare)
            loop.run(way.bare.gathered(questions(64), 4))
        yield ways


def report(rows: list[Row], ways: Mapping[str, Way], minutes: float) -> str:
    interpreter = find_interpreter(None)
    met = sum(row.is_met is True for row in rows)
    goals = sum(row.goal is not None for row in rows)
    lines = [
        "# What the gateway adds",
        "",
        f"One run of `make bench-gateway`, {minutes:.0f} minutes: {machine()}, Python "
        f"{platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} build), model "
        f"examples/tiny_chat, ROUNDS={ROUNDS}.",
        "",
        "One engine; bare aiohttp asks it by its own Unix socket, through the gateway, by its own TCP port, and "
        "through vllm-router before that port. Medians, with the smallest and the largest of the rounds, which are in "
        "alternating order: *ours / theirs* compares neighbours. Client, gateway, router and engine share the cores: "
        "what one takes, another lacks.",
        "",
        f"{met} of {goals} goals are met.",
        "",
        *table(rows),
        "",
    ]
    if ROUTER not in ways:
        lines += [f"- {ROUTER} was left out: {ROUTERS.name} is not there.", ""]
    return "\n".join(lines)


def main() -> int:
    began = time.monotonic()
    with runtime_directory() as folder, asyncio.Runner() as loop:
        engine = Engine(**SETTINGS, serve_tcp=True)
        try:
            engine.warmup()
            with ways_to(engine, folder, loop) as ways:
                bench = Bench(loop, ways)
                parts = {"streams": bench.streams, "call": bench.call, "short": bench.short}
                rows = [row for name, part in parts.items() if ONLY in name for row in part()]
                rows += bench.processor_time()
        finally:
            engine.shutdown(force=True)
    text = report(rows, ways, (time.monotonic() - began) / 60)
    say(text)
    if not ONLY and SIZE == 1:
        (HERE / "results" / "gateway.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
