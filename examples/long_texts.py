"""A text that is too long for the model: refused before a start, cut by the model's own tokens, summed up by pieces."""

import sys
from pathlib import Path

from shared_engine import ContextLengthError, Engine

# On a GPU, with a model of your own: Engine(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
engine = Engine(model=model, gpu_memory_utilization=0.3, check_context=True)

text = "".join(f"Room {number} holds {number * 3} chairs. " for number in range(400))
question = "How many chairs are in room 7?"


def messages(part: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{part}\n\n{question}"}]


try:
    engine.chat(messages(text), max_tokens=64)
except ContextLengthError as error:
    print(f"{error.prompt_tokens} tokens and {error.completion_tokens} of an answer are {error.excess} too many")

plan = engine.plan_chunks(text, overlap=20, reserve=256)
pieces = [text[begin:end] for begin, end in plan.char_spans or ()]
print(f"{plan.count} pieces of at most {plan.size} tokens, {plan.n_tokens} in all, the first at {plan.spans[0]}")
for result in engine.chat_batch([messages(piece) for piece in pieces], max_tokens=16, temperature=0):
    print(f"{result.usage.prompt_tokens} tokens read, {result.finish_reason}")

answer = engine.chat(messages(pieces[0]), max_tokens=4096, truncate_completion=True, temperature=0)
print(f"max_tokens was lowered to {answer.max_tokens_lowered_to}")
