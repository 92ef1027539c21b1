"""Reads a stream that is not about to end; says so at each chunk."""

import json
import sys

from shared_engine import Engine

engine = Engine(**json.loads(sys.argv[1]))
hello = [{"role": "user", "content": "Hello"}]
for _ in engine.stream_chat(hello, max_tokens=1500, extra_body={"ignore_eos": True}):
    print("chunk", flush=True)
