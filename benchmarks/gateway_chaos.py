"""Chaos behind and in the gateway: three models of which one fits at a time, asked without a pause while processes of
their engines, their supervisors, and the gateway itself are killed.

Real vLLM on tiny_chat. The gateway has its socket from this process, as from systemd, and is started again when it is
gone. A client asks again only where its connection was closed before anything of an answer came. After about EVERY
answers something is killed, and sometimes another thing while that is being made good. Writes
benchmarks/results/gateway_chaos.md. ``make bench-gateway-chaos`` runs it, in 11 minutes; REQUESTS, EVERY, SEED.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import aiohttp
from figures import percentile, say
from questions import questions
from servers import DTYPE, MODEL, runtime_directory
from soak import LEFT_AFTER_S, processes_below

from shared_engine import Engine, VLLMError
from tests.support.gateways import Gateway, gateway
from tests.support.processes import wait_gone

REQUESTS = int(os.environ.get("REQUESTS", "10000"))
SEED = int(os.environ.get("SEED", "18"))
EVERY = int(os.environ.get("EVERY", "250"))
LIMIT_S = float(os.environ.get("LIMIT_S", "900"))
AT_ONCE_SHARE, AT_ONCE_S = 0.3, 3.0
GATEWAYS_SHARE = 0.3
TURN_S = 2.0
TOKENS = 8
ASKERS = {"busy": 16, "middling": 6, "rare": 2}
TRIES = 20
AGAIN_S = 0.2
CHAT = "/v1/chat/completions"
UNFINISHED = "not yet"
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "dtype": DTYPE,
    "enforce_eager": True,
    "max_loaded_engines": 1,
    "engine_args": {"kv_cache_memory_bytes": 128 << 20},
    "start_timeout_s": 120,
    "timeout": 60,
}
MODELS = {name: {**SETTINGS, "max_model_len": 1024 + number} for number, name in enumerate(ASKERS)}


@dataclass
class Asked:
    """One request, by its last try.

    Attributes:
        wait_s: until the answer, or its first piece, came; of all tries together.
        outcome: ``answered``, or what the client saw.
    """

    model: str
    is_stream: bool
    began: float
    wait_s: float = 0.0
    again: int = 0
    has_begun: bool = False
    outcome: str = UNFINISHED


@dataclass
class Deed:
    """What was done to which process."""

    process: str
    signal: str

    def __str__(self) -> str:
        return f"{self.signal} to {self.process}"


@dataclass
class Chaos:
    """What goes on, and what was seen of it."""

    gate: Callable[[], Gateway]
    asked: list[Asked] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    answered: int = 0
    left: Iterator[int] = field(default_factory=lambda: iter(range(REQUESTS)))
    began: float = field(default_factory=time.monotonic)

    # ---- the clients

    async def ask_on(self, model: str, text: str, session: aiohttp.ClientSession) -> None:
        for number in self.left:
            asked = Asked(model, number % 2 == 0, time.monotonic())
            self.asked.append(asked)
            for left in reversed(range(TRIES)):
                try:
                    await self._ask(asked, f"{text} {number}", session)
                except (aiohttp.ClientError, ConnectionError) as exc:
                    asked.outcome = f"the connection was closed: {type(exc).__name__}"
                    if asked.has_begun or not left:
                        break
                    asked.again += 1
                    asked.outcome = UNFINISHED
                    await asyncio.sleep(AGAIN_S)
                else:
                    break
            self.answered += asked.outcome == "answered"

    async def _ask(self, asked: Asked, text: str, session: aiohttp.ClientSession) -> None:
        body = {
            "model": asked.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": asked.is_stream,
        }
        async with session.post(self.gate().url + CHAT, json=body) as response:
            if response.status != 200:
                asked.outcome = f"{response.status}: {_error(await response.read())}"
                return
            if not asked.is_stream:
                answer = await response.json()
                asked.wait_s = time.monotonic() - asked.began
                count = answer["usage"]["completion_tokens"]
                asked.outcome = "answered" if count == TOKENS else f"{count} tokens came"
                return
            events: list[bytes] = []
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if not asked.has_begun:
                    asked.has_begun, asked.wait_s = True, time.monotonic() - asked.began
                events.append(line[6:].strip())
            asked.outcome = _outcome(events)
            asked.has_begun = len(events) > 1 or asked.outcome == "answered"  # else it is an error alone

    # ---- the deeds

    async def destroy(self, engines: dict[str, Engine], restart: Callable[[int], Any]) -> None:
        chance = random.Random(SEED)
        while True:
            until = self.answered + chance.uniform(0.5, 1.5) * EVERY
            while self.answered < until:
                await asyncio.sleep(0.05)
            await self._kill(chance, engines, restart)
            if chance.random() < AT_ONCE_SHARE:
                await asyncio.sleep(chance.uniform(0, AT_ONCE_S))
                await self._kill(chance, engines, restart)

    async def _kill(self, chance: random.Random, engines: dict[str, Engine], restart: Callable[[int], Any]) -> None:
        if chance.random() < GATEWAYS_SHARE:
            number = chance.choice((signal.SIGKILL, signal.SIGTERM))
            self.deeds.append(Deed("the gateway", number.name))
            await asyncio.to_thread(restart, number)
        else:
            await asyncio.to_thread(self._kill_one, chance, list(engines.values()))

    def _kill_one(self, chance: random.Random, engines: list[Engine]) -> None:
        trees = [tree for engine in engines if (tree := engine.status(processes=True).processes) is not None]
        victims = [each for tree in trees for each in tree.walk()]
        if victims:
            victim = chance.choice(victims)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
                self.deeds.append(Deed(victim.name, "SIGKILL"))


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return repr(body[:80])


def _outcome(events: list[bytes]) -> str:
    if not events:
        return "an empty stream"
    if events[-1] == b"[DONE]":
        pieces = sum(bool(json.loads(each)["choices"][0]["delta"].get("content")) for each in events[:-1])
        return "answered" if pieces else "a stream without a text"
    return f"an error in the stream: {_error(events[-1])}" if b'"error"' in events[-1] else "ended without [DONE]"


class Service:
    """The gateway, started again on the same socket, as systemd would."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._socket = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        self._stack = stack.enter_context(ExitStack())
        self.gate = self._started()

    def _started(self) -> Gateway:
        content = {"models": MODELS, "turn_s": TURN_S, "comment_interval_s": 2}
        return self._stack.enter_context(gateway(content, self._folder, passed=(self._socket,)))

    def restart(self, number: int) -> None:
        self.gate.process.send_signal(number)
        self.gate.process.wait()
        self._stack.close()
        self.gate = self._started()


@asynccontextmanager
async def under_way(*works: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def run(service: Service, engines: dict[str, Engine]) -> Chaos:
    chaos = Chaos(lambda: service.gate)
    texts = iter(questions(sum(ASKERS.values())))
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        asking = [chaos.ask_on(model, next(texts), session) for model, count in ASKERS.items() for _ in range(count)]
        async with under_way(chaos.destroy(engines, service.restart), _tell(chaos)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIMIT_S):
                    await asyncio.gather(*asking)
    return chaos


async def _tell(chaos: Chaos) -> None:
    while True:
        await asyncio.sleep(10)
        last = f", the last: {chaos.deeds[-1]}" if chaos.deeds else ""
        say(f"  {time.monotonic() - chaos.began:.0f} s: {len(chaos.asked)} requests, {len(chaos.deeds)} deeds{last}")


def report(chaos: Chaos, seconds: float, left: int) -> str:
    asked = chaos.asked
    failed = [each for each in asked if each.outcome != "answered"]
    lost = [each for each in failed if not each.has_begun and each.outcome != UNFINISHED]
    unfinished = sum(each.outcome == UNFINISHED for each in asked)
    lines = [
        "# Chaos behind the gateway, and in it",
        "",
        f"One run of `make bench-gateway-chaos` (`EVERY={EVERY} LIMIT_S={LIMIT_S:g}`), seed {SEED}: "
        f"{len(asked):,} requests of {TOKENS} tokens in "
        f"{seconds:.0f} s, every second one a stream, to three models of which one fits at a time "
        f"(`max_loaded_engines: 1`, `turn_s: {TURN_S:g}`). After about {EVERY} answers something is killed: a process "
        "of an engine, its launcher, its supervisor, or the gateway, which is started again on the same socket; "
        f"after three in ten another thing follows within {AT_ONCE_S:g} s.",
        "",
        "| | |",
        "|---|---|",
        f"| requests | {len(asked):,} |",
        f"| answered | {sum(each.outcome == 'answered' for each in asked):,} |",
        f"| **lost, of those that had not begun to answer** | **{len(lost)}** |",
        f"| broken off in the middle of an answer, and told so | {len(failed) - len(lost) - unfinished} |",
        f"| under way when the time was over | {unfinished} |",
        f"| asked again, as the gateway was gone before it answered | {sum(each.again for each in asked):,} |",
        f"| killed | {len(chaos.deeds)} |",
        f"| processes left | {left} |",
        "",
        "How long a request waited for its answer, or the first piece of it, in s:",
        "",
        "| model | clients | requests | p50 | p99 | longest |",
        "|---|---|---|---|---|---|",
    ]
    for model, count in ASKERS.items():
        waits = [each.wait_s for each in asked if each.model == model and each.outcome == "answered"]
        if waits:
            shown = " | ".join(f"{value:.1f}" for value in (percentile(waits, 50), percentile(waits, 99), max(waits)))
            lines.append(f"| {model} | {count} | {len(waits):,} | {shown} |")
    for title, counts in (
        ("Not answered", Counter(f"{each.outcome}{', begun' if each.has_begun else ''}" for each in failed)),
        ("Killed", Counter(map(str, chaos.deeds))),
    ):
        lines += ["", f"## {title}", "", "| what | times |", "|---|---|"]
        lines += [f"| {what.replace('|', '/')} | {times} |" for what, times in counts.most_common(40)]
    return "\n".join(lines) + "\n"


def main() -> int:
    with runtime_directory() as root, ExitStack() as stack:
        engines = {name: Engine(**settings) for name, settings in MODELS.items()}
        folder = root / "gateway"
        folder.mkdir(mode=0o700)
        began = time.monotonic()
        try:
            service = Service(folder, stack)
            chaos = asyncio.run(run(service, engines))
        finally:
            stack.close()
            for engine in engines.values():
                with contextlib.suppress(VLLMError):
                    engine.shutdown(force=True)
        seconds = time.monotonic() - began
        left = wait_gone(processes_below(root), LEFT_AFTER_S)
        text = report(chaos, seconds, left)
    say(text)
    if REQUESTS >= 10_000:
        (HERE / "results" / "gateway_chaos.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
