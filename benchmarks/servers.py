"""What the contenders run on: a runtime directory of this run's own, and ``vllm serve`` with our engine's flags."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared_engine import EngineSettings
from shared_engine.launch.spec import engine_spec, resolve_model
from shared_engine.runtime.directory import ROOT_VARIABLE

HERE = Path(__file__).resolve().parent
MODEL = str(HERE.parent / "examples" / "tiny_chat")
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "enforce_eager": True,
    "max_model_len": 2048,
    "engine_args": {"kv_cache_memory_bytes": 512 << 20},
}
HELLO = [{"role": "user", "content": "Hello"}]
ENV_DEFAULTS = {"HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "none"}


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """One of this run's own: its engines are shared with nobody else's. Engines must be gone before it is left.

    SIGTERM leaves it as Ctrl-C does, so that no engine stays behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    root = Path(tempfile.mkdtemp(prefix="vlb-", dir="/tmp"))
    os.environ[ROOT_VARIABLE] = str(root)
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def model_name(settings: Mapping[str, Any]) -> str:
    """As the server names it."""
    return resolve_model(EngineSettings(**settings))


def llm_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` for the same."""
    options = {**settings, **settings.get("engine_args", {})}
    options.pop("engine_args", None)
    return options


@contextmanager
def plain_server(settings: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """vLLM's own API server with the same flags, on a free port; yields its URL once it has answered a chat."""
    with plain_process(settings, folder) as (url, _):
        yield url


@contextmanager
def plain_process(settings: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, int]]:
    """The same, with the number of its process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spec = engine_spec(EngineSettings(**settings))
    command = [spec.python, "-m", "vllm.entrypoints.openai.api_server", *spec.argv]
    log = folder / "vllm_serve.log"
    with open(log, "ab") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not _answers(port, spec.model):
            if server.poll() is not None:
                raise SystemExit(f"vllm serve ended: {log.read_text()[-3000:]}")
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        _end(server)


def _answers(port: int, model: str) -> bool:
    """True when a chat of one token is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 1})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _end(server: subprocess.Popen[bytes]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signal.SIGCONT)
            os.killpg(server.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            server.wait(10)
            break
        except subprocess.TimeoutExpired:
            continue
