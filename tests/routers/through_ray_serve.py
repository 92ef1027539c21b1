"""Ray Serve LLM on vLLM's CPU build: what both adapters have through its ingress. `make test-ray`.

Named so that pytest finds it only when it is asked: Ray is in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, Engine, ModelNotFoundError, RequestRejectedError
from tests.support.paths import TINY_CHAT
from tests.support.ray_serve import ray_serve
from tests.support.suites import assert_suites_pass

HELLO = [{"role": "user", "content": "Hello"}]
CAPITAL, PARIS = "What is the capital of France?", "The capital of France is Paris."
SETTINGS: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 256 << 20,
    "enable_prompt_tokens_details": True,
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
    "reasoning_parser": "deepseek_v3",
}
EMBEDDING_SETTINGS: dict[str, Any] = {
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 16 << 20,
    "runner": "pooling",
}
SUITES = [
    "langchain/test_standard_integration.py",
    "langchain/test_embeddings_standard.py",
    "llama_index/test_core_suite.py",
]

LEFT_OUT = {"model_override": "no adapter is loaded, which could be asked for instead of the model"}
"""Tests that do not hold through it, by a part of their names, and why."""


@pytest.fixture(scope="module")
def ingress(minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = {str(TINY_CHAT): SETTINGS, str(minilm["model"]): EMBEDDING_SETTINGS}
    with ray_serve(models, tmp_path_factory.mktemp("ray")) as url:
        yield url


@pytest.fixture
def engine(ingress: str) -> Engine:
    return Engine(base_url=ingress, model=str(TINY_CHAT), temperature=0)


def test_both_adapters_answer_whole_and_streamed(ingress: str) -> None:
    settings: dict[str, Any] = {"base_url": ingress, "model": str(TINY_CHAT), "temperature": 0}
    chat, index = ChatVLLM(**settings), VLLM(**settings)
    assert chat.invoke(CAPITAL).text == index.complete(CAPITAL).text == PARIS
    assert "".join(str(chunk.text) for chunk in chat.stream(CAPITAL)) == PARIS
    assert "".join(piece.delta or "" for piece in index.stream_complete(CAPITAL)) == PARIS


def test_its_model_has_a_length_so_texts_need_no_max_tokens(engine: Engine) -> None:
    assert engine.generate("Hello", stop=["."]).text


def test_its_errors_are_ours(ingress: str, engine: Engine) -> None:
    with pytest.raises(ContextLengthError, match="the model's limit is 2048"):
        engine.chat([{"role": "user", "content": "word " * 3000}])
    with pytest.raises(RequestRejectedError, match="temperature must be in"):
        engine.chat(HELLO, temperature=9.0)
    with pytest.raises(ModelNotFoundError, match="other"):
        Engine(base_url=ingress, model="other").chat(HELLO)


def test_it_is_well_without_a_route_for_that(engine: Engine) -> None:
    assert engine.is_ready()
    assert engine.metrics() == {}


def test_it_counts_no_tokens(engine: Engine) -> None:
    """Ray 2.60 looks for vLLM's tokenizer under a name that vLLM 0.28 to 0.32 do not have."""
    with pytest.raises(RequestRejectedError, match="does not support the 'tokenization' task"):
        engine.count_tokens("Hello")


@pytest.mark.timeout(1800)
def test_the_frameworks_standard_suites_pass_through_it(ingress: str) -> None:
    assert_suites_pass((f"tests/{name}" for name in SUITES), ingress, ingress, LEFT_OUT)
