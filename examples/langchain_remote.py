"""The same line with base_url: a remote vLLM server. It is never started, stopped or put to sleep from here.

Usage: python langchain_remote.py [URL [KEY]], after, for example, ``vllm serve Qwen/Qwen3-4B --api-key KEY``.
"""

import sys

from langchain_vllm_local import ChatVLLM

base_url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
api_key = sys.argv[2] if len(sys.argv) > 2 else None
llm = ChatVLLM(base_url=base_url, api_key=api_key, temperature=0)  # model=... where the server has several

answer = llm.invoke("What is the capital of France?")
print(f"{answer.response_metadata['model_name']}: {answer.text}")
for chunk in llm.stream("Count from 1 to 10."):
    print(chunk.text, end="", flush=True)
print()
print(f"running there now: {llm.engine.metrics()['num_requests_running']:g} requests")
