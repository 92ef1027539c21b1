"""Rounds of ``vllm.LLM.chat`` in process, on request. Runs in the engine's own Python, behind foundation.py.

One line on stdin is one round; one JSON line on stdout is its result. vLLM's own log goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    model, count, tokens, kv_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints must not stand between the answers

    from vllm import LLM, SamplingParams

    llm = LLM(model=model, enforce_eager=True, max_model_len=2048, kv_cache_memory_bytes=kv_bytes)
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    conversations = [[{"role": "user", "content": f"Hello number {index}"}] for index in range(count)]
    answers.write(json.dumps({"ready": True}) + "\n")
    for _ in sys.stdin:
        began = time.perf_counter()
        outputs = llm.chat(conversations, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        generated = sum(len(output.outputs[0].token_ids) for output in outputs)
        answers.write(json.dumps({"tokens": generated, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
