"""Many inputs at once: as many requests in flight as the engine takes, each with its own answer, usage and error."""

import sys
from pathlib import Path

from langchain_vllm_local import ChatVLLM

# On a GPU, with a model of your own: ChatVLLM(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, max_tokens=64, gpu_memory_utilization=0.3)
questions = [f"What is the capital of {country}?" for country in ("France", "Italy", "Spain", "Japan")] * 16

# In order; config={"max_concurrency": 8} would keep it to 8 at once.
answers = llm.batch(questions, use_tqdm=True)
tokens = sum(answer.usage_metadata["output_tokens"] for answer in answers if answer.usage_metadata)
print(f"{len(answers)} answers, {tokens} tokens; the last: {answers[-1].text}")

# Each as soon as it is there.
for index, answer in llm.batch_as_completed(questions[:4]):
    print(index, answer.text)

# One input that can't be answered, being too long for the model, leaves the others alone.
for result in llm.batch([questions[0], "word " * 10_000, questions[1]], return_exceptions=True):
    print(f"{type(result).__name__}: {result}" if isinstance(result, Exception) else result.text)
