"""The eight endpoints, alike: each takes an llm and keywords; gives its responses: one, or all pieces of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse

QUESTION = "Hello, how are you?"
MESSAGES = [ChatMessage(role="user", content=QUESTION)]

Response = ChatResponse | CompletionResponse


async def alist(stream: Any) -> list[Any]:
    return [response async for response in await stream]


ENDPOINTS: dict[str, Callable[..., list[Response]]] = {
    "complete": lambda llm, **kw: [llm.complete(QUESTION, **kw)],
    "stream_complete": lambda llm, **kw: list(llm.stream_complete(QUESTION, **kw)),
    "chat": lambda llm, **kw: [llm.chat(MESSAGES, **kw)],
    "stream_chat": lambda llm, **kw: list(llm.stream_chat(MESSAGES, **kw)),
    "acomplete": lambda llm, **kw: [asyncio.run(llm.acomplete(QUESTION, **kw))],
    "astream_complete": lambda llm, **kw: asyncio.run(alist(llm.astream_complete(QUESTION, **kw))),
    "achat": lambda llm, **kw: [asyncio.run(llm.achat(MESSAGES, **kw))],
    "astream_chat": lambda llm, **kw: asyncio.run(alist(llm.astream_chat(MESSAGES, **kw))),
}
STREAMS = [name for name in ENDPOINTS if "stream" in name]


def given_to(endpoint: str) -> Any:
    """What an endpoint of this name takes: a prompt, or messages."""
    return QUESTION if endpoint.endswith("complete") else MESSAGES


def text_of(response: Response) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""
