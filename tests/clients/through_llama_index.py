"""LlamaIndex's OpenAILike and Ollama through the gateway; the first gets what it gets of vLLM itself.

`make test-clients`; named so that pytest finds it only when it is asked. Needs openai 2: see packages_openai_2.txt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.clients.conftest import KEY, Server

CAPITAL = "What is the capital of France?"
PARIS = "The capital of France is Paris."
MESSAGES = [ChatMessage(role="user", content=CAPITAL)]


class Person(BaseModel):
    name: str
    age: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def streamed(llm: Any, messages: list[ChatMessage]) -> str:
    return "".join([part.delta or "" async for part in await llm.astream_chat(messages)])


def called(llm: Any, messages: list[ChatMessage], **more: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = llm.chat_with_tools([FunctionTool.from_defaults(add)], chat_history=messages, **more)
    return [(call.tool_name, call.tool_kwargs) for call in llm.get_tool_calls_from_response(answer)]


WAYS: dict[str, Callable[[Any], Any]] = {
    "complete": lambda llm: llm.complete(CAPITAL).text,
    "stream_complete": lambda llm: "".join(part.delta or "" for part in llm.stream_complete(CAPITAL)),
    "acomplete": lambda llm: asyncio.run(llm.acomplete(CAPITAL)).text,
    "chat": lambda llm: llm.chat(MESSAGES).message.content,
    "stream_chat": lambda llm: "".join(part.delta or "" for part in llm.stream_chat(MESSAGES)),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES)).message.content,
    "astream_chat": lambda llm: asyncio.run(streamed(llm, MESSAGES)),
}
ADD = [ChatMessage(role="user", content="Add 2 and 3.")]
ANNA = [ChatMessage(role="user", content="Anna Smith is 31 years old.")]


def open_ai_like(server: Server, **more: Any) -> OpenAILike:
    return OpenAILike(
        api_base=server.v1, api_key=KEY, model=server.models["chat"], is_chat_model=True,
        is_function_calling_model=True, temperature=0, max_tokens=64, max_retries=0, **more,
    )  # fmt: skip


@pytest.fixture
def ollama(through: Server) -> Ollama:
    return Ollama(
        model="chat", base_url=through.url, temperature=0, headers={"authorization": f"Bearer {KEY}"}, thinking=False,
        additional_kwargs={"num_predict": 64},
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_open_ai_like_gets_the_same(through: Server, itself: Callable[[str], Server], way: str) -> None:
    passed, own = (WAYS[way](open_ai_like(server)) for server in (through, itself("chat")))
    assert passed == own == PARIS


def test_open_ai_like_completes_texts_without_a_template(through: Server, itself: Callable[[str], Server]) -> None:
    passed, own = (
        open_ai_like(server).model_copy(update={"is_chat_model": False}).complete("Hello").text
        for server in (through, itself("chat"))
    )
    assert passed == own


def test_open_ai_like_calls_tools_and_fills_forms(through: Server, itself: Callable[[str], Server]) -> None:
    for server in (through, itself("chat")):
        llm = open_ai_like(server)
        assert called(llm, ADD, tool_required=True) == [("add", {"a": 2, "b": 3})]
        form = open_ai_like(server, should_use_structured_outputs=True).as_structured_llm(Person)
        assert form.chat(ANNA).raw == Person(name="Anna Smith", age=31)


@pytest.mark.parametrize("way", WAYS)
def test_ollamas_class_gets_the_models_answer(ollama: Ollama, way: str) -> None:
    assert WAYS[way](ollama) == PARIS


def test_ollamas_class_calls_tools_and_fills_forms(ollama: Ollama) -> None:
    assert called(ollama, ADD) == [("add", {"a": 2, "b": 3})]
    assert ollama.as_structured_llm(Person).chat(ANNA).raw == Person(name="Anna Smith", age=31)
