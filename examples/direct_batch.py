"""A batch job in one process: vLLM under the app itself, no server, nothing left running when the app has ended.

Needs vLLM in this Python: pip install 'vllm-local[cuda]' (without a GPU: see docs/direct.md). With mode="auto" a Python
without it uses a shared engine instead.
"""

import sys
from pathlib import Path

from shared_engine import Engine

# On a GPU, with a model of your own: Engine(model="Qwen/Qwen3-4B", mode="direct"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
engine = Engine(model=model, mode="direct", gpu_memory_utilization=0.3)  # starts nothing yet

countries = ("France", "Italy", "Spain", "Japan") * 16
questions = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in countries]
answers = engine.chat_batch(questions, temperature=0, max_tokens=32)
print(len(answers), "answers; the first:", answers[0].text)

for chunk in engine.stream_chat(questions[1], temperature=0, max_tokens=32):
    print(chunk.text, end="", flush=True)
print()

engine.evict()  # the model leaves memory; the next request brings it back
print(engine.status().state.value)
