"""Begins each way to ask that comes on stdin, on the engine of the first argument, until Ctrl-C; then says so."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage

import langchain_vllm_local
import llama_index_vllm_local
from shared_engine import Engine

COUNT = 60
HELLO = [{"role": "user", "content": "Hello"}]
LONG: dict[str, Any] = {"max_tokens": 700, "extra_body": {"ignore_eos": True}}

settings = json.loads(sys.argv[1])
engine = Engine(**settings)
chat = langchain_vllm_local.ChatVLLM(**settings, **LONG)
llm = llama_index_vllm_local.VLLM(**settings, **LONG)
messages = [ChatMessage("Hello")]
WAYS: dict[str, Callable[[], Any]] = {
    "engine.chat_batch": lambda: engine.chat_batch([HELLO] * COUNT, **LONG),
    "engine.achat_batch": lambda: asyncio.run(engine.achat_batch([HELLO] * COUNT, **LONG)),
    "engine.stream_chat": lambda: list(engine.stream_chat(HELLO, **LONG)),
    "langchain.batch": lambda: chat.batch(["Hello"] * COUNT),
    "langchain.generate": lambda: chat.generate([[HumanMessage("Hello")]] * COUNT),
    "langchain.abatch": lambda: asyncio.run(chat.abatch(["Hello"] * COUNT)),
    "llama_index.chat_batch": lambda: llm.chat_batch([messages] * COUNT),
    "llama_index.achat_batch": lambda: asyncio.run(llm.achat_batch([messages] * COUNT)),
    "llama_index.stream_chat": lambda: list(llm.stream_chat(messages)),
}

signal.signal(signal.SIGINT, signal.default_int_handler)
print(json.dumps(list(WAYS)), flush=True)
for line in sys.stdin:
    try:
        print("begins", flush=True)
        WAYS[line.strip()]()
        print("answered", flush=True)
    except KeyboardInterrupt:
        print("back", flush=True)
