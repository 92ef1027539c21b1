"""serve_tcp on real vLLM: other programs ask the engine over TCP, which stays shared, private and evictable."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from shared_engine import Engine, EngineBusyError, EngineStartError, EngineState
from tests.real.conftest import MakeEngine
from tests.support.in_flight import SHORT, SHORT_ANSWER, wait_quiet
from tests.support.paths import REPOSITORY
from tests.support.processes import all_processes
from tests.support.waiting import wait_until

KEY = "tcp-s3cret-key"
HELLO: Any = [{"role": "user", "content": "Hello"}]


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer, as any program gets them."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(url.removesuffix("/v1") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            content = response.read()
            return response.status, json.loads(content) if content.startswith((b"{", b"[")) else content
    except urllib.error.HTTPError as exc:
        return exc.code, json.loads(exc.read() or b"null")


def chat_body(**values: Any) -> dict[str, Any]:
    return {"messages": HELLO, **SHORT, **values}


@contextmanager
def endless_stream(url: str, model: str) -> Iterator[None]:
    """A stream of another program's, which has begun."""
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        yield
        stream.close()


def test_the_code_in_the_docs_runs(
    quiet_engine: Engine, tiny_chat: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    page = (REPOSITORY / "docs" / "serve_tcp.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = block.replace('model="Qwen/Qwen3-4B"', "**settings")
    assert code != block
    exec(code, {"Engine": Engine, "settings": tiny_chat})
    assert "http://127.0.0.1:80" in capsys.readouterr().out, "8000, or the next one that is free"
    assert quiet_engine.is_ready()


def test_other_programs_ask_the_same_engine(quiet_engine: Engine, tiny_chat: dict[str, Any]) -> None:
    starts = quiet_engine.status().starts
    before = {*quiet_engine.status().urls}
    engine = Engine(**tiny_chat, serve_tcp=True)
    assert engine.chat(HELLO, **SHORT).text == SHORT_ANSWER
    urls = quiet_engine.status().urls  # whoever looks sees it
    (url,) = {*urls} - before
    assert url.startswith("http://127.0.0.1:")
    assert Engine(**tiny_chat, serve_tcp=True).chat(HELLO, **SHORT).text == SHORT_ANSWER
    assert (engine.status().starts, engine.status().urls) == (starts, urls)

    assert ask(url, "/health")[0] == 200
    model = ask(url, "/v1/models")[1]["data"][0]["id"]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, temperature=0)
        assert answer.choices[0].message.content == SHORT_ANSWER
        stream = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == SHORT_ANSWER
    assert b"vllm:" in ask(url, "/metrics")[1]
    for path in ("/docs", "/v1/load_lora_adapter", "/vllm-local/open", "/scale_elastic_ep"):
        assert ask(url, path, {})[0] == 404
    assert ask(url, "/v1/chat/completions", chat_body(model=model), origin="https://evil.example")[0] == 403


def test_a_key_guards_a_port_of_its_own_and_is_seen_nowhere(quiet_engine: Engine, tiny_chat: dict[str, Any]) -> None:
    engine = Engine(**tiny_chat, serve_tcp=True, api_key=KEY)
    before = {*engine.status().urls}
    assert engine.chat(HELLO, **SHORT).text == SHORT_ANSWER, "by the Unix socket, without it"
    (url,) = {*engine.status().urls} - before
    assert ask(url, "/v1/models")[0] == 401
    assert ask(url, "/metrics")[0] == 401
    assert ask(url, "/v1/models", authorization="Bearer wrong")[0] == 401
    assert ask(url, "/v1/models", authorization=f"Bearer {KEY}")[0] == 200
    assert ask(url, "/health")[0] == 200
    folder = Path(engine.status().log_file or "").parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    shown = [Path(f"/proc/{pid}/{name}") for pid in all_processes(engine) for name in ("cmdline", "environ")]
    assert len(shown) > 6
    assert [path for path in (*files, *shown) if KEY.encode() in path.read_bytes()] == []


def test_a_taken_port_is_passed_over_and_an_address_of_elsewhere_told(
    quiet_engine: Engine, tiny_chat: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        engine = Engine(**tiny_chat, serve_tcp=f"127.0.0.1:{taken}")
        before = {*engine.status().urls}
        engine.warmup()
        (url,) = {*engine.status().urls} - before
    assert int(url.removesuffix("/v1").rpartition(":")[2]) > taken
    elsewhere = Engine(**tiny_chat, serve_tcp="192.0.2.77:8000", api_key=KEY)
    with pytest.raises(EngineStartError, match=r"serve_tcp = '192\.0\.2\.77:8000' can't be opened: .* address"):
        elsewhere.chat(HELLO, **SHORT)
    assert quiet_engine.chat(HELLO, **SHORT).text == SHORT_ANSWER, "the engine itself is well"


@pytest.mark.long
def test_a_request_by_tcp_keeps_the_engine_awake_and_counts_as_use(breakable: MakeEngine) -> None:
    engine = breakable(idle_ttl_s=1, serve_tcp=True)
    engine.warmup()
    url, model = engine.status().urls[0], engine.status().model or ""
    with endless_stream(url, model):
        assert engine.status().leases == 1
        with pytest.raises(EngineBusyError):
            engine.evict(timeout=0.1)
    wait_quiet(engine)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:  # longer than it may be idle
        assert ask(url, "/v1/chat/completions", chat_body(model=model))[0] == 200
    wait_until(lambda: engine.status().state is EngineState.STANDBY, 20, "the eviction")
    assert engine.status().urls == ()
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(url, "/health")
    # Who does not wish it has no port opened; who does, has it again.
    assert breakable().chat(HELLO, **SHORT).text == SHORT_ANSWER
    assert engine.status().urls == ()
    assert asyncio.run(engine.achat(HELLO, **SHORT)).text == SHORT_ANSWER
    assert ask(engine.status().urls[0], "/v1/models")[0] == 200
