"""Asks the server at the first argument as the interpreter ends: the second names the way, the third the moment.

Prints the text of the answer, or the name of the error.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from shared_engine import Engine, VLLMError

HELLO = [{"role": "user", "content": "Hello"}]
URL, WAY, MOMENT = sys.argv[1:]

engine = Engine(base_url=URL, model="served")


def adapter(package: str, kind: str) -> Any:
    return getattr(__import__(package), kind)(base_url=URL, model="served")


async def last_chunk() -> Any:
    return [chunk async for chunk in engine.astream_chat(HELLO)][-1]


def langchain_batch() -> Callable[[], Any]:
    llm = adapter("langchain_vllm_local", "ChatVLLM")
    llm.invoke("Hello")
    return lambda: llm.batch(["Hello"] * 2)[0].content


def llama_index_batch() -> Callable[[], Any]:
    llm = adapter("llama_index_vllm_local", "VLLM")
    llm.complete("Hello")
    return lambda: llm.complete_batch(["Hello"] * 2)[0].text


WAYS: dict[str, Callable[[], Callable[[], Any]]] = {
    "chat": lambda: lambda: engine.chat(HELLO).text,
    "chat_batch": lambda: lambda: engine.chat_batch([HELLO] * 2)[0].text,
    "stream": lambda: lambda: next(engine.stream_chat(HELLO)).text,
    "achat": lambda: lambda: asyncio.run(engine.achat(HELLO)).text,
    "astream": lambda: lambda: asyncio.run(last_chunk()).text,
    "langchain_batch": langchain_batch,
    "llama_index_batch": llama_index_batch,
}
ask = WAYS[WAY]()


def tell(
    ask: Callable[[], Any] = ask, error: type[Exception] = VLLMError, write: Callable[..., int] = os.write
) -> None:
    try:
        said = ask()
    except error as exc:
        said = type(exc).__name__
    write(1, str(said).encode())


class Last:
    """Dropped when the interpreter takes its modules down."""

    def __init__(self) -> None:
        self.tell = tell

    def __del__(self) -> None:
        self.tell()


if MOMENT == "del_unused":
    last = Last()
elif MOMENT == "del":
    engine.chat(HELLO)
    last = Last()
elif MOMENT == "atexit":
    atexit.register(tell)
else:
    threading.Thread(target=lambda: [ask() for _ in range(100_000)], daemon=True).start()
