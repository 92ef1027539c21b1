"""Ours and ChatOpenAI in one form: texts in, Answers (or a Streamed) out, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from bare import Streamed
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from llama_index.core.llms import ChatMessage
from questions import Answer

import langchain_vllm_local
import llama_index_vllm_local

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}


class Framework(Protocol):
    """One chat model in a framework."""

    def ask(self, text: str) -> Answer: ...
    async def aask(self, text: str) -> Answer: ...
    def stream(self, text: str) -> Streamed: ...
    async def astream(self, text: str) -> Streamed: ...


class LangChain:
    """A chat model in LangChain, asked as an app does."""

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model

    def ask(self, text: str) -> Answer:
        return _of_message(self._model.invoke(text))

    async def aask(self, text: str) -> Answer:
        return _of_message(await self._model.ainvoke(text))

    def stream(self, text: str) -> Streamed:
        streamed = Streamed()
        for chunk in self._model.stream(text):
            _add_chunk(streamed, chunk)
        return streamed

    async def astream(self, text: str) -> Streamed:
        streamed = Streamed()
        async for chunk in self._model.astream(text):
            _add_chunk(streamed, chunk)
        return streamed

    def batch(self, texts: Sequence[str], **config: Any) -> list[Answer]:
        return [
            _of_message(message)
            for message in self._model.batch(list(texts), config=cast("RunnableConfig", config) or None)
        ]

    async def abatch(self, texts: Sequence[str]) -> list[Answer]:
        return [_of_message(message) for message in await self._model.abatch(list(texts))]


class LlamaIndex:
    """VLLM in LlamaIndex, asked as an app does."""

    def __init__(self, model: llama_index_vllm_local.VLLM) -> None:
        self._model = model

    def ask(self, text: str) -> Answer:
        return _of_response(self._model.chat(_conversation(text)))

    async def aask(self, text: str) -> Answer:
        return _of_response(await self._model.achat(_conversation(text)))

    def stream(self, text: str) -> Streamed:
        streamed = Streamed()
        for response in self._model.stream_chat(_conversation(text)):
            _add_response(streamed, response)
        return streamed

    async def astream(self, text: str) -> Streamed:
        streamed = Streamed()
        async for response in await self._model.astream_chat(_conversation(text)):
            _add_response(streamed, response)
        return streamed

    def batch(self, texts: Sequence[str]) -> list[Answer]:
        return [_of_response(response) for response in self._model.chat_batch([_conversation(text) for text in texts])]

    async def gathered(self, texts: Sequence[str]) -> list[Answer]:
        return await asyncio.gather(*(self.aask(text) for text in texts))


class TextPrompts:
    """LangChain's VLLM, which gives texts only: their order shows by the prompts, which vLLM puts before them."""

    def __init__(self, settings: Mapping[str, Any], tokens: int) -> None:
        extra = {"ignore_eos": True, "echo": True}
        self._model = langchain_vllm_local.VLLM(**settings, temperature=0, max_tokens=tokens, extra_body=extra)

    def batch(self, texts: Sequence[str]) -> list[str]:
        return self._model.batch(list(texts))

    def counted(self, texts: Sequence[str]) -> list[Answer]:
        """As ``batch``, with the token counts, which take a callback."""
        counter = _Counter()
        answers = self._model.batch(list(texts), config={"callbacks": [counter]})
        return [Answer(*usage, text) for usage, text in zip(counter.usages, answers, strict=True)]


class _Counter(BaseCallbackHandler):
    def __init__(self) -> None:
        self.usages: list[tuple[int, int]] = []

    def on_llm_end(self, response: Any, **_: Any) -> None:
        usage = response.generations[0][0].generation_info["usage_metadata"]
        self.usages.append((usage["input_tokens"], usage["output_tokens"]))


def langchain(settings: Mapping[str, Any], tokens: int) -> LangChain:
    return LangChain(langchain_vllm_local.ChatVLLM(**settings, **GREEDY, max_tokens=tokens))


def llama_index(settings: Mapping[str, Any], tokens: int) -> LlamaIndex:
    return LlamaIndex(llama_index_vllm_local.VLLM(**settings, **GREEDY, max_tokens=tokens))


def chat_openai(model: str, url: str, tokens: int) -> LangChain:
    from langchain_openai import ChatOpenAI

    settings: dict[str, Any] = {"base_url": url + "/v1", "api_key": "none", "timeout": 600, "stream_usage": True}
    return LangChain(ChatOpenAI(model=model, **settings, **GREEDY, max_completion_tokens=tokens))


def _conversation(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def _of_message(message: AIMessage) -> Answer:
    assert message.usage_metadata is not None
    usage = message.usage_metadata
    return Answer(usage["input_tokens"], usage["output_tokens"], str(message.content))


def _of_response(response: Any) -> Answer:
    counts = response.additional_kwargs
    return Answer(counts["prompt_tokens"], counts["completion_tokens"], response.message.content)


def _add_chunk(streamed: Streamed, chunk: Any) -> None:
    streamed.add(chunk.content)
    if chunk.usage_metadata:
        streamed.prompt_tokens = chunk.usage_metadata["input_tokens"]
        streamed.completion_tokens = chunk.usage_metadata["output_tokens"]


def _add_response(streamed: Streamed, response: Any) -> None:
    streamed.add(response.delta or "")
    if "completion_tokens" in response.additional_kwargs:
        streamed.prompt_tokens = response.additional_kwargs["prompt_tokens"]
        streamed.completion_tokens = response.additional_kwargs["completion_tokens"]
