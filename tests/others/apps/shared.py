"""What every app here asks: the engine of the variable SETTINGS, which is JSON."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading

from langchain_vllm_local import ChatVLLM

llm = ChatVLLM(**json.loads(os.environ["SETTINGS"]))


@functools.cache
def one_loop() -> threading.Lock:
    """Of several greenlets in one thread, asyncio itself lets one at a time run a loop. Made after a fork."""
    return threading.Lock()


async def other() -> str:
    """What another library does with asyncio."""
    await asyncio.sleep(0.001)
    return "done"


def answer() -> str:
    """Ours, then somebody else's asyncio, then ours by asyncio."""
    text = llm.invoke("Hello").text
    with one_loop():
        assert asyncio.run(other()) == "done"
        return text + " " + asyncio.run(llm.ainvoke("Hello")).text
