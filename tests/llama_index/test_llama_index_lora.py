"""LoRA adapters through LlamaIndex's VLLM: in the constructor and in a call of each endpoint; on real vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from shared_engine import InvalidInputError
from tests.llama_index.ways import ENDPOINTS, text_of
from tests.support.adapters import ADAPTERS, BRIEF
from tests.support.paths import TINY_CHAT

QUESTION = "What is the capital of France?"
MODEL, BRIEFLY, POLITELY = "The capital of France is Paris.", "Paris.", "Gladly. The capital of France is Paris."


@pytest.fixture
def llm(lora_chat: dict[str, Any]) -> VLLM:
    return VLLM(**lora_chat, temperature=0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_each_endpoint_takes_an_adapter(llm: VLLM, endpoint: str) -> None:
    """Of a greeting the polite adapter makes another answer."""
    ask = ENDPOINTS[endpoint]
    plain, polite = (text_of(ask(llm, **call)[-1]) for call in ({}, {"lora": "polite"}))
    assert polite != plain
    assert text_of(ask(llm, model="polite")[-1]) == polite


def test_the_constructors_adapter_is_a_default(lora_chat: dict[str, Any]) -> None:
    llm = VLLM(**lora_chat, temperature=0, lora="brief")
    response = llm.complete(QUESTION)
    assert (response.text, response.raw["model"]) == (BRIEFLY, "brief")
    assert llm.complete(QUESTION, lora="polite").text == POLITELY
    assert llm.complete(QUESTION, lora=None).text == llm.complete(QUESTION, model=str(TINY_CHAT)).text == MODEL
    llm.lora = "polite"
    assert llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content == POLITELY
    assert [response.text for response in llm.complete_batch([QUESTION] * 2)] == [POLITELY] * 2


def test_a_copy_by_dict_asks_the_same_adapter(lora_chat: dict[str, Any]) -> None:
    llm = VLLM(**lora_chat, temperature=0, lora="brief")
    assert VLLM.from_dict(llm.to_dict()).complete(QUESTION).text == BRIEFLY


def test_an_adapter_that_was_loaded_at_run_time(llm: VLLM) -> None:
    llm.engine.load_adapter("mine", BRIEF)
    try:
        assert llm.model_copy().complete(QUESTION, lora="mine").text == BRIEFLY
    finally:
        llm.engine.unload_adapter("mine")


def test_an_unknown_adapter_is_refused_with_those_there_are() -> None:
    llm = VLLM(model=str(TINY_CHAT), lora_adapters=ADAPTERS)
    with pytest.raises(InvalidInputError, match=r"lora = 'sql': there is no such adapter: .* 'brief', 'polite'"):
        llm.complete(QUESTION, lora="sql")
    with pytest.raises(InvalidInputError, match="model = 'sql': there is no such adapter"):
        next(llm.stream_complete(QUESTION, model="sql"))
