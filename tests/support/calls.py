"""Every way to ask a server for something, alike: a model's settings, and keywords of the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.llms import ChatMessage

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine

HELLO = [{"role": "user", "content": "Hello"}]
_MESSAGES = [ChatMessage(content="Hello")]
_SHORT: dict[str, Any] = {"max_tokens": 5}  # of a text, which would ask for the server's limit otherwise


async def _alist(stream: Any) -> list[Any]:
    return [piece async for piece in stream]


async def _alist_of(stream: Any) -> list[Any]:
    return [piece async for piece in await stream]


CALLS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], object]] = {
    "chat": lambda own, call: Engine(**own).chat(HELLO, **call),
    "achat": lambda own, call: asyncio.run(Engine(**own).achat(HELLO, **call)),
    "stream_chat": lambda own, call: list(Engine(**own).stream_chat(HELLO, **call)),
    "astream_chat": lambda own, call: asyncio.run(_alist(Engine(**own).astream_chat(HELLO, **call))),
    "chat_batch": lambda own, call: Engine(**own).chat_batch([HELLO] * 2, **call),
    "achat_batch": lambda own, call: asyncio.run(Engine(**own).achat_batch([HELLO] * 2, **call)),
    "generate": lambda own, call: Engine(**own).generate("Hello", **_SHORT, **call),
    "stream_generate": lambda own, call: list(Engine(**own).stream_generate("Hello", **_SHORT, **call)),
    "generate_batch": lambda own, call: Engine(**own).generate_batch(["Hello"] * 2, **_SHORT, **call),
    "embed": lambda own, call: Engine(**own).embed(["Hello"], **call),
    "aembed": lambda own, call: asyncio.run(Engine(**own).aembed(["Hello"], **call)),
    "rerank": lambda own, call: Engine(**own).rerank("Hello", ["a"], **call),
    "arerank": lambda own, call: asyncio.run(Engine(**own).arerank("Hello", ["a"], **call)),
    "invoke": lambda own, call: ChatVLLM(**own).invoke("Hello", **call),
    "ainvoke": lambda own, call: asyncio.run(ChatVLLM(**own).ainvoke("Hello", **call)),
    "bound": lambda own, call: ChatVLLM(**own).bind(**call).invoke("Hello"),
    "stream": lambda own, call: list(ChatVLLM(**own).stream("Hello", **call)),
    "astream": lambda own, call: asyncio.run(_alist(ChatVLLM(**own).astream("Hello", **call))),
    "batch": lambda own, call: ChatVLLM(**own).batch(["Hello"] * 2, **call),
    "abatch": lambda own, call: asyncio.run(ChatVLLM(**own).abatch(["Hello"] * 2, **call)),
    "text": lambda own, call: LangChainVLLM(**own).invoke("Hello", **_SHORT, **call),
    "text_stream": lambda own, call: list(LangChainVLLM(**own).stream("Hello", **_SHORT, **call)),
    "text_batch": lambda own, call: LangChainVLLM(**own).batch(["Hello"] * 2, **_SHORT, **call),
    "llama_chat": lambda own, call: VLLM(**own).chat(_MESSAGES, **call),
    "llama_achat": lambda own, call: asyncio.run(VLLM(**own).achat(_MESSAGES, **call)),
    "llama_stream": lambda own, call: list(VLLM(**own).stream_chat(_MESSAGES, **call)),
    "llama_astream": lambda own, call: asyncio.run(_alist_of(VLLM(**own).astream_chat(_MESSAGES, **call))),
    "llama_complete": lambda own, call: VLLM(**own).complete("Hello", **call),
    "llama_batch": lambda own, call: VLLM(**own).chat_batch([_MESSAGES] * 2, **call),
}
STREAMS = [way for way in CALLS if "stream" in way]
QUICK = ("chat", "stream_chat", "embed", "invoke", "llama_stream")
"""One of each kind, where each costs time."""


def ask(way: str, url: str, settings: Mapping[str, Any], **call: Any) -> object:
    """One call of a server, in one of the ways; there are two requests in a batch."""
    return CALLS[way]({"base_url": url, "model": "served", **settings}, call)


def requests_of(way: str) -> int:
    return 2 if "batch" in way else 1
