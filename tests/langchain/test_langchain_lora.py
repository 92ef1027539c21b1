"""LoRA adapters through ChatVLLM and VLLM: in a call, bound, in the constructor, configurable; on real vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel

from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import InvalidInputError
from tests.support.adapters import ADAPTERS, BRIEF
from tests.support.paths import TINY_CHAT

QUESTION = "What is the capital of France?"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think></think>"
MODEL, BRIEFLY, POLITELY = "The capital of France is Paris.", "Paris.", "Gladly. The capital of France is Paris."


@pytest.fixture
def llm(lora_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**lora_chat, temperature=0)


def test_a_call_names_its_adapter(llm: ChatVLLM) -> None:
    message = llm.invoke(QUESTION, lora="brief")
    assert (message.text, message.response_metadata["model_name"]) == (BRIEFLY, "brief")
    assert message.usage_metadata["input_tokens"] == llm.invoke(QUESTION).usage_metadata["input_tokens"]
    assert llm.invoke(QUESTION, model="polite").text == POLITELY
    assert llm.invoke(QUESTION, model=str(TINY_CHAT)).text == MODEL
    assert "".join(chunk.text for chunk in llm.stream(QUESTION, lora="polite")) == POLITELY


async def test_asynchronous_calls_do_too(llm: ChatVLLM) -> None:
    assert (await llm.ainvoke(QUESTION, lora="brief")).text == BRIEFLY
    assert "".join([chunk.text async for chunk in llm.astream(QUESTION, lora="polite")]) == POLITELY
    answers = await llm.bind(lora="brief").abatch([QUESTION] * 3)
    assert [answer.text for answer in answers] == [BRIEFLY] * 3


def test_the_constructors_adapter_is_a_default(lora_chat: dict[str, Any]) -> None:
    llm = ChatVLLM(**lora_chat, temperature=0, lora="brief")
    assert llm.invoke(QUESTION).text == BRIEFLY
    assert llm.invoke(QUESTION, lora="polite").text == POLITELY
    assert llm.invoke(QUESTION, lora=None).text == llm.invoke(QUESTION, model=str(TINY_CHAT)).text == MODEL
    llm.lora = "polite"
    assert [answer.text for answer in llm.batch([QUESTION, QUESTION])] == [POLITELY] * 2


def test_bound_and_configured_adapters(llm: ChatVLLM) -> None:
    assert llm.bind(lora="brief").invoke(QUESTION).text == BRIEFLY
    configurable = llm.configurable_fields(lora=ConfigurableField(id="lora"))
    assert configurable.invoke(QUESTION).text == MODEL
    configs = [{"configurable": {"lora": name}} for name in ("brief", "polite")]
    assert [configurable.invoke(QUESTION, config).text for config in configs] == [BRIEFLY, POLITELY]
    assert [answer.text for answer in configurable.batch([QUESTION] * 2, configs)] == [BRIEFLY, POLITELY]


def test_text_models_do_the_same(lora_chat: dict[str, Any]) -> None:
    llm = VLLM(**lora_chat, temperature=0, lora="brief")
    assert llm.invoke(PROMPT) == BRIEFLY
    assert llm.bind(lora="polite").batch([PROMPT] * 2) == [POLITELY] * 2
    assert "".join(llm.stream(PROMPT, model="polite")) == POLITELY


def test_structured_output_is_the_adapters(llm: ChatVLLM) -> None:
    class Person(BaseModel):
        name: str

    asked = llm.model_copy(update={"lora": "polite", "max_tokens": 40}).with_structured_output(Person, include_raw=True)
    raw = asked.invoke("Extract the name: Anna is 31 years old.")["raw"]
    assert raw.response_metadata["model_name"] == "polite"
    assert raw.text.startswith('{"name": ')


def test_an_adapter_that_was_loaded_at_run_time_is_known_to_copies(llm: ChatVLLM) -> None:
    llm.engine.load_adapter("mine", BRIEF)
    try:
        assert llm.model_copy(update={"max_tokens": 50}).invoke(QUESTION, lora="mine").text == BRIEFLY
        llm.max_tokens = 40
        configurable = llm.configurable_fields(lora=ConfigurableField(id="lora"))
        assert configurable.invoke(QUESTION, {"configurable": {"lora": "mine"}}).text == BRIEFLY
    finally:
        llm.engine.unload_adapter("mine")


def test_an_unknown_adapter_is_refused_with_those_there_are() -> None:
    llm = ChatVLLM(model=str(TINY_CHAT), lora_adapters=ADAPTERS, lora="sql")
    for ask in (llm.invoke, lambda text: next(llm.stream(text)), lambda text: llm.batch([text, text])):
        with pytest.raises(InvalidInputError, match=r"lora = 'sql': there is no such adapter: .* 'brief', 'polite'"):
            ask(QUESTION)


def test_what_traces_and_caches_see_tells_adapters_apart() -> None:
    models = [ChatVLLM(model=str(TINY_CHAT), lora_adapters=ADAPTERS, lora=name) for name in ADAPTERS]
    assert models[0]._identifying_params != models[1]._identifying_params
    assert models[0]._identifying_params["lora_adapters"] == ADAPTERS
