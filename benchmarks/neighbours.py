"""How long a small request waits while another caller's large one is served: the worst wait of two neighbours.

Both ask "Hello" for one token every 20 ms: one in a process of its own, one in a thread of the process that does the
large thing, which then shares its interpreter and its event loop. Real vLLM on tiny_chat. Writes
benchmarks/results/neighbours.md. ``make bench-neighbours`` runs it; ``DEEDS=word,word`` only those with such a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from servers import HELLO, SETTINGS, runtime_directory

from shared_engine import Engine, VLLMError

EVERY_S = 0.02
QUIET_S = 2.0
Wait = tuple[float, float]
"""When an answer came (time.monotonic()), and how long it had taken."""


# ---- the neighbours


def ask_for_ever(engine: Engine, note: Callable[[Wait], object], is_over: Callable[[], bool]) -> None:
    due = time.monotonic()
    while not is_over():
        began = time.monotonic()
        engine.chat(HELLO, max_tokens=1)
        ended = time.monotonic()
        note((ended, ended - began))
        due = max(due + EVERY_S, ended)
        time.sleep(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def neighbours() -> Iterator[Mapping[str, list[Wait]]]:
    """What the two have seen so far."""
    seen: dict[str, list[Wait]] = {"another process": [], "the same process": []}
    child = subprocess.Popen([sys.executable, __file__, "--neighbour"], stdout=subprocess.PIPE, text=True)
    is_over = threading.Event()

    def hear() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            ended, waited = json.loads(line)
            seen["another process"].append((ended, waited))

    def ask() -> None:
        ask_for_ever(Engine(**SETTINGS), seen["the same process"].append, is_over.is_set)

    threads = [threading.Thread(target=each) for each in (hear, ask)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        child.terminate()
        for thread in threads:
            thread.join()
        child.wait()


# ---- what is done beside them


def tool(number: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    return {"type": "function", "function": {"name": f"tool_{number}", "parameters": parameters}}


def schema(properties: int) -> dict[str, Any]:
    fields = {f"field_{number}": {"type": "string"} for number in range(properties)}
    return {"type": "object", "properties": fields, "required": list(fields)}


def deeds(engine: Engine) -> dict[str, Callable[[], object]]:
    def chat(**options: Any) -> object:
        return engine.chat(HELLO, **options)

    def refused(text: str, times: int = 1) -> None:
        outcomes = engine.generate_batch([text] * times, max_tokens=1, return_exceptions=True)
        assert all(isinstance(each, VLLMError) for each in outcomes)

    def polled(call: Callable[[], object]) -> None:
        until = time.monotonic() + QUIET_S
        while time.monotonic() < until:
            call()

    structured = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema(500)}}
    long: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
    return {
        "nothing": lambda: time.sleep(QUIET_S),
        "a batch of 256 chats of 64 tokens": lambda: engine.chat_batch([HELLO] * 256, max_tokens=64, **long),
        "a prompt of 4 MB": lambda: engine.generate("a b " * 1_000_000, max_tokens=1),
        "a prompt of 50 MB": lambda: engine.generate("a b " * 12_500_000, max_tokens=1),
        "200 prompts of 25 kB, which are refused": lambda: refused("a b " * 6_250, 200),
        "200 prompts of 2.5 kB": lambda: engine.generate_batch(["a b " * 625] * 200, max_tokens=1),
        "2,000 tools": lambda: chat(tools=[tool(number) for number in range(2000)], max_tokens=1),
        "n = 100, 16 tokens each": lambda: chat(n=100, max_tokens=16, temperature=1.0, **long),
        "20 logprobs of 1,000 tokens": lambda: chat(max_tokens=1000, logprobs=20, **long),
        "20 logprobs of 1,000 tokens, streamed": lambda: list(
            engine.stream_chat(HELLO, max_tokens=1000, logprobs=20, **long)
        ),
        "10,000 stop strings": lambda: chat(max_tokens=64, stop=[f"no {n}" for n in range(10_000)], **long),
        "a schema of 500 fields": lambda: chat(max_tokens=64, response_format=structured),
        "count_tokens of a conversation of 1 MB": lambda: engine.count_tokens(
            [{"role": "user", "content": "a b " * 250_000}]
        ),
        "count_tokens of a text of 10 MB": lambda: engine.count_tokens("a b " * 2_500_000),
        "stats() without a pause": lambda: polled(engine.metrics),
        "status(processes=True) without a pause": lambda: polled(lambda: engine.status(processes=True)),
    }


# ---- the table


def main() -> int:
    words = [word for word in os.environ.get("DEEDS", "").split(",") if word]
    lines = [
        "# How long a neighbour waits",
        "",
        'Two neighbours ask "Hello" for one token every 20 ms while one large thing is done; in ms, their middle and '
        "worst wait. One run of `make bench-neighbours`, real vLLM on the CPU, tiny_chat.",
        "",
        "| beside | it takes, s | another process: middle | worst | the same process: middle | worst |",
        "|---|---|---|---|---|---|",
    ]
    with runtime_directory():
        engine = Engine(**SETTINGS)
        engine.warmup()
        try:
            engine.count_tokens("Hello")  # exports the tokenizer, once
            engine.chat(HELLO, max_tokens=2, logprobs=1)  # compiles, once
            with neighbours() as seen, ThreadPoolExecutor(1) as caller:
                for name, deed in deeds(engine).items():
                    if words and not any(word in name for word in words):
                        continue
                    time.sleep(1)
                    began = time.monotonic()
                    try:
                        caller.submit(deed).result()
                    except VLLMError as exc:
                        name += f" (refused: HTTP {getattr(exc, 'status', None)})"
                    ended = time.monotonic()
                    time.sleep(1)
                    cells = [name, f"{ended - began:.1f}"]
                    for waits in seen.values():
                        # What was under way in this time at all.
                        within = [took for when, took in list(waits) if when >= began and when - took <= ended]
                        cells += [f"{wait(within) * 1e3:.0f}" if within else "-" for wait in (statistics.median, max)]
                    lines.append(f"| {' | '.join(cells)} |")
                    print(lines[-1], flush=True)
        finally:
            engine.shutdown(force=True)
    if not words:
        (HERE / "results" / "neighbours.md").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    if "--neighbour" in sys.argv:
        ask_for_ever(Engine(**SETTINGS), lambda wait: print(json.dumps(wait), flush=True), lambda: False)
    sys.exit(main())
