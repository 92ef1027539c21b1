"""The same line with base_url: a remote vLLM server. It is never started, stopped or put to sleep from here.

Usage: python llama_index_remote.py [URL [KEY]], after, for example, ``vllm serve Qwen/Qwen3-4B --api-key KEY``.
"""

import sys

from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
api_key = sys.argv[2] if len(sys.argv) > 2 else None
llm = VLLM(base_url=base_url, api_key=api_key, temperature=0)  # model=... where the server has several

answer = llm.chat([ChatMessage(role="user", content="What is the capital of France?")])
print(f"{answer.raw['model']}: {answer.message.content}")
for piece in llm.stream_complete("Count from 1 to 10."):
    print(piece.delta, end="", flush=True)
print()
print(f"prompts of up to {llm.metadata.context_window} tokens, as the server tells")
print(f"running there now: {llm.engine.metrics()['num_requests_running']:g} requests")
