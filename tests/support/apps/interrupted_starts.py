"""Asks an engine that never comes up, in each way that comes on stdin, until Ctrl-C; then says so."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from shared_engine import Engine

HELLO = [{"role": "user", "content": "Hello"}]
engine = Engine(**json.loads(sys.argv[1]))
WAYS: dict[str, Callable[[], Any]] = {
    "chat": lambda: engine.chat(HELLO),
    "stream": lambda: list(engine.stream_chat(HELLO)),
    "batch": lambda: engine.chat_batch([HELLO] * 3),
    "warmup": engine.warmup,
    "achat": lambda: asyncio.run(engine.achat(HELLO)),
}
signal.signal(signal.SIGINT, signal.default_int_handler)
print("is here", flush=True)
for line in sys.stdin:
    try:
        print("begins", flush=True)
        WAYS[line.strip()]()
        print("answered", flush=True)
    except KeyboardInterrupt:
        print("back", flush=True)
