"""reproducible=True on real vLLM: one text over runs, alone, in a batch of 64, after a return, in both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine

QUESTIONS = (
    "What is the capital of France?",
    "Count from 1 to 10.",
    "Tell me a joke.",
    "Hello, how are you?",
    "My name is Ann. What is my name?",
    "What is the capital of Japan?",
    "Count from 3 to 20.",
    "Tell me a story.",
    "Explain why the sky is blue. " * 40,
)
LONG = len(QUESTIONS) - 1
"""Comes from the prefix cache after the first time."""


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@pytest.mark.long
def test_the_same_request_has_the_same_text_wherever_it_runs(own_engine: Callable[..., Engine]) -> None:
    engine = own_engine(reproducible=True, max_tokens=200)
    alone = [engine.chat(asked(question)).text for question in QUESTIONS]
    assert len(set(alone)) == len(QUESTIONS)

    def check(texts: list[str]) -> None:
        assert texts == [alone[index % len(QUESTIONS)] for index in range(len(texts))]

    again = [engine.chat(asked(question), temperature=0.9, seed=index) for index, question in enumerate(QUESTIONS)]
    check([result.text for result in again])
    assert (again[LONG].usage.cached_tokens or 0) >= 128
    batch = [asked(QUESTIONS[index % len(QUESTIONS)]) for index in range(64)]
    for _ in range(3):
        check([result.text for result in engine.chat_batch(batch, temperature=0.9, seed=3)])
    settings = {name: getattr(engine.settings, name) for name in engine.settings.model_fields_set}
    check(answers_of_langchain(settings))
    check(answers_of_llama_index(settings))
    engine.evict()
    check([result.text for result in engine.chat_batch(batch)])
    check(["".join(chunk.text for chunk in engine.stream_chat(asked(question))) for question in QUESTIONS])
    assert engine.status().state.value == "ready"


def answers_of_langchain(settings: dict[str, Any]) -> list[str]:
    llm = ChatVLLM(**settings, temperature=0.8)
    streamed = "".join(chunk.text for chunk in llm.stream(QUESTIONS[0]))
    batch = [str(message.text) for message in llm.batch(list(QUESTIONS * 7))]
    assert streamed == batch[0]
    return batch


def answers_of_llama_index(settings: dict[str, Any]) -> list[str]:
    llm = VLLM(**settings, temperature=0.8)

    async def all_at_once() -> list[str]:
        prompts = QUESTIONS * 7
        return [response.text for response in await asyncio.gather(*(llm.acomplete(prompt) for prompt in prompts))]

    return asyncio.run(all_at_once())
