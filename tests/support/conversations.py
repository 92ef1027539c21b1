"""One conversation asked in every way, by the engine and by both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine

Roles = Sequence[tuple[str, str]]
"""Of each message the role and the text."""

_CLASSES: dict[str, Any] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}


async def _alist(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def _alist_of(stream: Any) -> list[Any]:
    return [piece async for piece in await stream]


def openais(roles: Roles) -> list[dict[str, Any]]:
    return [{"role": role, "content": said} for role, said in roles]


def langchains(roles: Roles) -> list[Any]:
    return [_CLASSES[role](said) for role, said in roles]


def llama_indexes(roles: Roles) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=said) for role, said in roles]


WAYS: dict[str, Callable[[Roles, dict[str, Any], dict[str, Any]], object]] = {
    "chat": lambda said, own, call: Engine(**own).chat(openais(said), **call),
    "achat": lambda said, own, call: asyncio.run(Engine(**own).achat(openais(said), **call)),
    "stream_chat": lambda said, own, call: list(Engine(**own).stream_chat(openais(said), **call)),
    "astream_chat": lambda said, own, call: asyncio.run(_alist(Engine(**own).astream_chat(openais(said), **call))),
    "chat_batch": lambda said, own, call: Engine(**own).chat_batch([openais(said)], **call),
    "invoke": lambda said, own, call: ChatVLLM(**own).invoke(langchains(said), **call),
    "ainvoke": lambda said, own, call: asyncio.run(ChatVLLM(**own).ainvoke(langchains(said), **call)),
    "stream": lambda said, own, call: list(ChatVLLM(**own).stream(langchains(said), **call)),
    "astream": lambda said, own, call: asyncio.run(_alist(ChatVLLM(**own).astream(langchains(said), **call))),
    "batch": lambda said, own, call: ChatVLLM(**own).batch([langchains(said)], **call),
    "abatch": lambda said, own, call: asyncio.run(ChatVLLM(**own).abatch([langchains(said)], **call)),
    "llama_chat": lambda said, own, call: VLLM(**own).chat(llama_indexes(said), **call),
    "llama_achat": lambda said, own, call: asyncio.run(VLLM(**own).achat(llama_indexes(said), **call)),
    "llama_stream": lambda said, own, call: list(VLLM(**own).stream_chat(llama_indexes(said), **call)),
    "llama_astream": lambda said, own, call: asyncio.run(
        _alist_of(VLLM(**own).astream_chat(llama_indexes(said), **call))
    ),
    "llama_batch": lambda said, own, call: VLLM(**own).chat_batch([llama_indexes(said)], **call),
}
"""A way takes what is said, the model's settings, and keywords of the call."""
