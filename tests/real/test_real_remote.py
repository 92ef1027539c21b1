"""A vLLM server that the test starts by hand: the same lines of code with base_url."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM as LlamaIndexVLLM
from shared_engine import AuthenticationError, ContextLengthError, Engine, EngineError, ModelNotFoundError
from shared_engine.launch.interpreter import find_interpreter
from tests.support.paths import TINY_CHAT
from tests.support.waiting import wait_until

pytestmark = pytest.mark.apart
CAPITAL = "What is the capital of France?"
START_S = 180.0


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a plain vLLM server with an API key, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("remote") / "vllm.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [
                find_interpreter(None).path, "-m", "vllm.entrypoints.openai.api_server", "--model", str(TINY_CHAT),
                "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--api-key", "s3cret",
                "--enforce-eager", "--max-model-len", "2048", "--kv-cache-memory-bytes", str(256 << 20),
                "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
            ],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    try:
        probe = Engine(base_url=url, api_key="s3cret")
        wait_until(lambda: probe.is_ready() or died(server, log), START_S, "the server")
        yield url
    finally:
        server.terminate()  # killed at once it would leave its shared memory
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def died(server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text()[-3000:]
    return False


def test_the_engine_answers_and_finds_the_model_by_itself(base_url: str) -> None:
    engine = Engine(base_url=base_url, api_key="s3cret")
    result = engine.chat([{"role": "user", "content": CAPITAL}])
    assert "Paris" in result.text
    assert result.model == "tiny"
    assert result.usage.completion_tokens > 0
    assert len(list(engine.stream_chat([{"role": "user", "content": "Count from 1 to 10."}]))) > 2
    assert engine.generate("Hello", max_tokens=4).usage.completion_tokens == 4


def test_both_frameworks_answer(base_url: str) -> None:
    remote: dict[str, Any] = {"base_url": base_url, "api_key": "s3cret", "model": "tiny"}
    chat = ChatVLLM(**remote)
    message = chat.invoke(CAPITAL)
    assert "Paris" in message.text
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] > 0
    assert "Paris" in "".join(chunk.text for chunk in chat.stream(CAPITAL))
    assert LangChainVLLM(**remote, max_tokens=4).invoke("Hello")
    index = LlamaIndexVLLM(**remote)
    assert "Paris" in index.complete(CAPITAL).text
    assert "Paris" in asyncio.run(index.acomplete(CAPITAL)).text
    assert "Paris" in [response.text for response in index.stream_complete(CAPITAL)][-1]


def test_a_wrong_key_and_a_wrong_model_are_typed_errors(base_url: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        Engine(base_url=base_url, api_key="wr0ng", model="tiny").chat([{"role": "user", "content": "Hello"}])
    assert "wr0ng" not in str(caught.value)
    with pytest.raises(ModelNotFoundError, match="other"):
        Engine(base_url=base_url, api_key="s3cret", model="other").chat([{"role": "user", "content": "Hello"}])


def test_a_prompt_over_the_limit_tells_both_numbers(base_url: str) -> None:
    with pytest.raises(ContextLengthError) as caught:
        Engine(base_url=base_url, api_key="s3cret").chat([{"role": "user", "content": "word " * 3000}])
    assert caught.value.max_model_len == 2048
    assert (caught.value.prompt_tokens or 0) > 3000


def test_it_is_looked_at_and_never_stopped(base_url: str) -> None:
    engine = Engine(base_url=base_url, api_key="s3cret")
    engine.warmup()
    assert "num_requests_running" in engine.metrics()
    with pytest.raises(EngineError, match="is remote"):
        engine.evict()
    assert engine.is_ready()


def test_a_fleet_goes_on_without_the_server_that_is_gone(base_url: str) -> None:
    urls = ["http://127.0.0.1:9", base_url]  # nothing listens at the first one
    chain = ChatVLLM(base_url=urls, api_key="s3cret", model="tiny", temperature=0)
    index = LlamaIndexVLLM(base_url=urls, api_key="s3cret", model="tiny", temperature=0)
    before = chain.engine.stats().requests  # all that this process has asked of these servers
    answers = {chain.invoke(CAPITAL, session=f"session {number}").text for number in range(8)}  # half prefer each
    assert answers == {"The capital of France is Paris."}
    assert "".join(str(chunk.text) for chunk in chain.stream(CAPITAL)) == "The capital of France is Paris."
    assert "".join(piece.delta or "" for piece in index.stream_complete(CAPITAL)) == "The capital of France is Paris."
    assert chain.engine.metrics()["generation_tokens"] > 0
    stats = chain.engine.stats().requests
    assert (stats.requests - before.requests, stats.errors) == (10, before.errors)
    assert stats.retries > before.retries
