"""What an environment made of our wheels can do: run by its own Python, with nothing of the repository beside it.

``python -I inside.py VERSION PART ...`` tries each part against a small server of its own, and ends with a traceback at
the first that fails. A part is a function of this file without ``try_``, ``readme:DISTRIBUTION`` or ``module:NAME``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

BIN = Path(sys.prefix) / "bin"
PREFIX = Path(sys.prefix).resolve()
WAIT_S = 60.0
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class Answers(BaseHTTPRequestHandler):
    """As vLLM would, in form: every chat says "Hi", every text has the vector (1, 2), every document a score."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send({"data": [{"id": "served", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("stream"):
            self._stream()
        elif self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": "Hi"}
            self._send(_answer({"index": 0, "message": message, "finish_reason": "stop"}))
        elif self.path.endswith("/completions"):
            self._send(_answer({"index": 0, "text": "Hi", "finish_reason": "stop"}))
        elif self.path.endswith("/embeddings"):
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            self._send({"data": [{"index": index, "embedding": [1.0, 2.0]} for index in range(len(texts))]})
        elif self.path.endswith("/rerank"):
            self._send({"results": [{"index": i, "relevance_score": 0.5} for i in range(len(body["documents"]))]})
        elif self.path.endswith("/tokenize"):
            words = str(body.get("prompt", body.get("messages"))).split()
            strings = {"token_strs": words} if body.get("return_token_strs") else {}
            self._send({"count": len(words), "tokens": list(range(len(words))), **strings})
        else:
            self.send_error(404)

    def _send(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for text, reason in (("H", None), ("i", "stop")):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
            self.wfile.write(b"data: " + json.dumps(_answer(choice)).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing: it would stand between what the parts print."""


def _answer(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "choices": [choice],
        "usage": USAGE,
    }


@contextlib.contextmanager
def server() -> Iterator[str]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
    finally:
        listening.shutdown()
        listening.server_close()


def must_be(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found!r} where {expected!r} was expected")


def command(*arguments: str) -> str:
    """What ``vllm-local`` prints.

    Raises:
        AssertionError: it failed; with what it printed.
    """
    done = subprocess.run([BIN / "vllm-local", *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode:
        raise AssertionError(f"vllm-local {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


# ---- parts: without an extra, then one for each


def try_engine(url: str) -> None:
    from shared_engine import Engine

    engine = Engine(base_url=url, model="served")
    messages = [{"role": "user", "content": "Hello"}]
    must_be(engine.chat(messages).text, "Hi")
    must_be("".join(chunk.text for chunk in engine.stream_chat(messages)), "Hi")
    must_be([result.text for result in engine.chat_batch([messages] * 3)], ["Hi"] * 3)
    must_be("usage: vllm-local" in command("--help"), True)
    command("status")
    must_be("Hi" in command("run", "served", "Hello", "--base-url", url), True)


def try_langchain(url: str) -> None:
    from langchain_vllm_local import VLLM, ChatVLLM, VLLMEmbeddings, VLLMRerank

    remote: dict[str, Any] = {"base_url": url, "model": "served"}
    llm = ChatVLLM(**remote)
    must_be(llm.invoke("Hello").text, "Hi")
    must_be("".join(chunk.text for chunk in llm.stream("Hello")), "Hi")
    usage = asyncio.run(llm.ainvoke("Hello")).usage_metadata
    must_be(usage and usage["total_tokens"], 4)
    must_be(VLLM(**remote).invoke("Hello"), "Hi")
    must_be(VLLMEmbeddings(**remote).embed_documents(["a", "b"]), [[1.0, 2.0]] * 2)
    from langchain_core.documents import Document

    ranked = VLLMRerank(**remote).compress_documents([Document("a")], "query")
    must_be([document.page_content for document in ranked], ["a"])


def try_llama_index(url: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.schema import NodeWithScore, TextNode

    from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank

    remote: dict[str, Any] = {"base_url": url, "model": "served"}
    llm = VLLM(**remote)
    must_be(llm.complete("Hello").text, "Hi")
    must_be(llm.chat([ChatMessage(content="Hello")]).message.content, "Hi")
    must_be("".join(piece.delta or "" for piece in llm.stream_complete("Hello")), "Hi")
    must_be(asyncio.run(llm.acomplete("Hello")).text, "Hi")
    must_be(VLLMEmbedding(**remote).get_text_embedding("a"), [1.0, 2.0])
    ranked = VLLMRerank(**remote).postprocess_nodes([NodeWithScore(node=TextNode(text="a"))], query_str="query")
    must_be([each.score for each in ranked], [0.5])


def try_text_splitters(url: str) -> None:
    from langchain_vllm_local import VLLMTextSplitter

    splitter = VLLMTextSplitter(base_url=url, model="served", chunk_size=4, chunk_overlap=0)
    must_be(splitter.split_text("a b c"), ["a b c"])


def try_openai(url: str) -> None:
    from shared_engine import Engine

    client = Engine(base_url=url, model="served").openai_client()
    answer = client.chat.completions.create(model="served", messages=[{"role": "user", "content": "Hello"}])
    must_be(answer.choices[0].message.content, "Hi")


def try_prometheus(url: str) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from shared_engine import Engine
    from shared_engine.prometheus import EnginesCollector, RequestsCollector

    Engine(base_url=url, model="served").chat([{"role": "user", "content": "Hello"}])
    registry = CollectorRegistry()
    registry.register(RequestsCollector())
    registry.register(EnginesCollector())
    must_be(b"vllm_local_requests_total" in generate_latest(registry), True)


def try_otel(url: str) -> None:
    from opentelemetry import trace

    must_be(trace.get_current_span().is_recording(), False)  # the API alone records nothing, and breaks nothing
    try_engine(url)


def try_cli(url: str) -> None:
    import prompt_toolkit
    import rich.console

    must_be(bool(prompt_toolkit.__version__ and rich.console.Console), True)
    must_be("usage: vllm-local chat" in command("chat", "--help"), True)


def try_gateway(url: str) -> None:
    """``vllm-local serve`` before the small server: a chat, its page with the files that it names, its end."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(f"models:\n  far:\n    base_url: {url}\n    model: served\n")
        arguments = [str(BIN / "vllm-local"), "serve", "--config", str(config), "--port", "0"]
        gateway = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            if gateway.stdout is None:
                raise AssertionError("no output to read")
            lines = iter(gateway.stdout.readline, "")
            found = next(filter(None, (re.search(r"http://[\w.]+:\d+", line) for line in lines)), None)
            if found is None:
                raise AssertionError("vllm-local serve ended without an address")
            _ask_gateway(found[0])
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.communicate(timeout=WAIT_S)
        must_be(gateway.returncode, 0)


def _ask_gateway(address: str) -> None:
    body = json.dumps({"model": "far", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    must_be(json.loads(_read(request))["choices"][0]["message"]["content"], "Hi")
    named = re.findall(r'(?:href|src)="(/?page/[^"]+)"', _read(f"{address}/").decode())
    must_be(len(named) > 1, True)
    for path in named:
        must_be(len(_read(f"{address}/{path.lstrip('/')}")) > 0, True)
    must_be(json.loads(_read(f"{address}/openapi.json"))["openapi"][:3], "3.1")
    must_be(b"vllm_local_gateway" in _read(f"{address}/metrics"), True)


def _read(request: urllib.request.Request | str) -> bytes:
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return bytes(answer.read())


def try_parquet(url: str) -> None:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "in.parquet", Path(folder) / "out.jsonl"
        pyarrow.parquet.write_table(pyarrow.table({"question": ["Hello", "Bye"]}), table)
        command("batch", str(table), str(out), "--base-url", url, "--model", "served", "--prompt-column", "question")
        must_be([json.loads(line)["text"] for line in out.read_text().splitlines()], ["Hi", "Hi"])


def try_bench(url: str) -> None:
    importlib.import_module("matplotlib.figure")


# ---- what distributions promise


def try_module(name: str) -> None:
    """Its classes are those of the adapter; it is in this environment."""
    module = importlib.import_module(name)
    adapter = importlib.import_module("llama_index_vllm_local")
    must_be(Path(str(module.__file__)).is_relative_to(PREFIX), True)
    must_be(bool(module.__all__), True)
    for each in module.__all__:
        must_be(getattr(module, each), getattr(adapter, each))


def try_readme(distribution: str, url: str) -> None:
    """The code on its page on PyPI, which stands in its metadata, runs, on the small server."""
    page = metadata(distribution)["Description"]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    must_be(bool(blocks), True)
    names = {"__name__": "readme"}
    os.environ["VLLM_API_URL"] = url
    try:
        for block in blocks:
            exec(compile(block, distribution, "exec"), names)
    finally:
        del os.environ["VLLM_API_URL"]


def check_places(version: str) -> None:
    import shared_engine

    must_be(shared_engine.__version__, version)
    must_be(Path(shared_engine.__file__).resolve().is_relative_to(PREFIX), True)
    typed = Path(shared_engine.__file__).with_name("py.typed")
    must_be(typed.exists(), True)


def main() -> None:
    version, *parts = sys.argv[1:]
    os.environ["VLLM_LOCAL_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="wheel")
    check_places(version)
    with server() as url:
        for part in parts:
            kind, _, name = part.partition(":")
            if kind == "module":
                try_module(name)
            elif kind == "readme":
                try_readme(name, url)
            else:
                globals()[f"try_{part.replace('-', '_')}"](url)


if __name__ == "__main__":
    main()
