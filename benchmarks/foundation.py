"""Cold start, return after eviction, and a batch of 256 chats, against ``vllm serve``, ChatOpenAI and ``LLM.chat``.

All in one run, in alternating order, on this machine: the ratios mean something, single figures less so. Writes
benchmarks/results/foundation.md. ``make bench`` runs it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(tempfile.mkdtemp(prefix="vlb-", dir="/tmp"))
os.environ["VLLM_LOCAL_RUNTIME_DIR"] = str(ROOT)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LANGSMITH_TRACING"] = "false"

from langchain_openai import ChatOpenAI  # noqa: E402

from langchain_vllm_local import ChatVLLM  # noqa: E402
from llama_index_vllm_local import VLLM  # noqa: E402
from shared_engine import Engine  # noqa: E402
from shared_engine.interpreter import find_interpreter  # noqa: E402

HERE = Path(__file__).resolve().parent
MODEL = str(HERE.parent / "examples" / "tiny_chat")
KV_BYTES = 512 << 20
CHATS, TOKENS, ROUNDS = 256, 64, int(os.environ.get("ROUNDS", "3"))
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "enforce_eager": True,
    "max_model_len": 2048,
    "engine_args": {"kv_cache_memory_bytes": KV_BYTES},
}
HELLO = [{"role": "user", "content": "Hello"}]


def say(text: str) -> None:
    print(text, flush=True)


# ---- what is compared


@contextmanager
def plain_server() -> Iterator[str]:
    """vLLM's own API server with the same flags, on a free port; yields its URL once it has answered a chat."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        find_interpreter(None).path, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--enforce-eager",
        "--max-model-len", "2048", "--kv-cache-memory-bytes", str(KV_BYTES), "--host", "127.0.0.1", "--port", str(port),
        "--enable-prompt-tokens-details", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    ]  # fmt: skip
    log = open(ROOT / "plain.log", "ab")  # noqa: SIM115
    server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while not answers(port):
            if server.poll() is not None:
                raise SystemExit(f"vllm serve ended: {(ROOT / 'plain.log').read_text()[-3000:]}")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def answers(port: int) -> bool:
    """True when a chat of one token is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": 1})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class LLMChat:
    """``LLM.chat`` in a process of the engine's Python."""

    def __init__(self) -> None:
        command = [
            find_interpreter(None).path,
            str(HERE / "llm_chat.py"),
            MODEL,
            str(CHATS),
            str(TOKENS),
            str(KV_BYTES),
        ]
        with open(ROOT / "llm_chat.log", "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"LLM.chat ended: {(ROOT / 'llm_chat.log').read_text()[-3000:]}")
        return dict(json.loads(line))

    def round(self) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        return float(answer["tokens"] / answer["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


# ---- starts


def seconds_of(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure_starts() -> dict[str, list[float]]:
    """From nothing to the first answer, and from evicted to the next one."""
    times: dict[str, list[float]] = {"vllm serve": [], "vllm-local, cold": [], "vllm-local, after eviction": []}
    engine = Engine(**SETTINGS)
    for index in range(ROUNDS):
        say(f"  starts, round {index + 1} of {ROUNDS}")
        began = time.perf_counter()
        with plain_server():
            times["vllm serve"].append(time.perf_counter() - began)
        times["vllm-local, cold"].append(seconds_of(lambda: engine.chat(HELLO, max_tokens=1)))
        engine.evict()
        times["vllm-local, after eviction"].append(seconds_of(lambda: engine.chat(HELLO, max_tokens=1)))
        engine.shutdown()
    return times


# ---- throughput


def contenders(url: str, in_process: LLMChat) -> dict[str, Callable[[], float]]:
    """Name -> one round, in tokens a second."""
    texts = [f"Hello number {index}" for index in range(CHATS)]
    conversations = [[{"role": "user", "content": text}] for text in texts]
    more = {"ignore_eos": True}
    local = Engine(**SETTINGS)
    plain = Engine(base_url=url, model=MODEL)
    ours = ChatVLLM(**SETTINGS, temperature=0, max_tokens=TOKENS, extra_body=more)
    openai = ChatOpenAI(
        model=MODEL,
        base_url=url + "/v1",
        api_key="none",
        temperature=0,
        max_tokens=TOKENS,
        extra_body=more,
        timeout=600,
    )
    index = VLLM(**SETTINGS, temperature=0, max_tokens=TOKENS, extra_body=more)

    def batch(engine: Engine) -> float:
        params = {"temperature": 0, "max_tokens": TOKENS, "extra_body": more}
        return rate(lambda: sum(r.usage.completion_tokens for r in engine.chat_batch(conversations, **params)))

    def langchain(answer: Callable[[], list[Any]]) -> float:
        return rate(lambda: sum(message.usage_metadata["output_tokens"] for message in answer()))

    async def gathered() -> int:
        answers = await asyncio.gather(*(index.acomplete(text) for text in texts))
        return sum(answer.additional_kwargs["completion_tokens"] for answer in answers)

    return {
        "LLM.chat, in process": in_process.round,
        "Engine.chat_batch": lambda: batch(local),
        "Engine.chat_batch on vllm serve (base_url)": lambda: batch(plain),
        "ChatVLLM.batch": lambda: langchain(lambda: ours.batch(texts)),
        "ChatVLLM.abatch": lambda: langchain(lambda: asyncio.run(ours.abatch(texts))),
        "LlamaIndex VLLM, 256 gathered acomplete": lambda: rate(lambda: asyncio.run(gathered())),
        "ChatOpenAI.batch on vllm serve": lambda: langchain(lambda: openai.batch(texts)),
        "ChatOpenAI.batch(max_concurrency=256) on vllm serve": lambda: langchain(
            lambda: openai.batch(texts, config={"max_concurrency": CHATS})
        ),
    }


def rate(count_tokens: Callable[[], int]) -> float:
    began = time.perf_counter()
    tokens = count_tokens()
    seconds = time.perf_counter() - began
    assert tokens == CHATS * TOKENS, f"{tokens} tokens came, {CHATS * TOKENS} were asked for"
    return tokens / seconds


def measure_throughput() -> dict[str, list[float]]:
    say("  starting the three engines")
    in_process = LLMChat()
    engine = Engine(**SETTINGS)
    try:
        with plain_server() as url:
            engine.warmup()
            rounds = contenders(url, in_process)
            figures: dict[str, list[float]] = {name: [] for name in rounds}
            for name, measure in rounds.items():
                if not name.startswith("ChatOpenAI"):
                    measure()  # warm; the slow ones are warm enough after the others
            for index in range(ROUNDS):
                names = list(rounds) if index % 2 == 0 else list(rounds)[::-1]
                for name in names:
                    figures[name].append(rounds[name]())
                    say(f"  round {index + 1} of {ROUNDS}: {name}: {figures[name][-1]:,.0f} tok/s")
            return figures
    finally:
        in_process.close()
        engine.shutdown()


# ---- the table


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def report(starts: dict[str, list[float]], figures: dict[str, list[float]]) -> str:
    serve = statistics.median(starts["vllm serve"])
    base = statistics.median(figures["LLM.chat, in process"])
    lines = [
        "# Starts and throughput, side by side",
        "",
        f"One run of `make bench`: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"vLLM {find_interpreter(None).version} ({find_interpreter(None).build} build), model examples/tiny_chat, "
        f"{ROUNDS} rounds in alternating order; median (min to max).",
        "",
        "| start, to the first answer | seconds | of vllm serve |",
        "|---|---|---|",
        *(
            f"| {name} | {spread(values, 1)} | {statistics.median(values) / serve:.2f} |"
            for name, values in starts.items()
        ),
        "",
        f"| {CHATS} chats of {TOKENS} tokens | tokens a second | of LLM.chat |",
        "|---|---|---|",
        *(
            f"| {name} | {spread(values, 0)} | {statistics.median(values) / base:.2f} |"
            for name, values in figures.items()
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    try:
        say("== starts")
        starts = measure_starts()
        say("== throughput")
        text = report(starts, measure_throughput())
    finally:
        Engine(**SETTINGS).shutdown(force=True)
        shutil.rmtree(ROOT, ignore_errors=True)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "foundation.md").write_text(text)
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
