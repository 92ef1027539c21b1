"""Every way of asking: complete, chat, stream, async, and many prompts at once. The engine starts on the first call."""

import asyncio
import sys
from pathlib import Path

from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM

# On a GPU, with a model of your own: VLLM(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = VLLM(model=model, temperature=0, max_tokens=64, gpu_memory_utilization=0.3)

print(llm.complete("What is the capital of France?").text)

conversation = [
    ChatMessage(role="user", content="My name is Ann."),
    ChatMessage(role="assistant", content="Hello Ann."),
    ChatMessage(role="user", content="What is my name?"),
]
answer = llm.chat(conversation, max_tokens=16)  # a call's own parameters win
print(answer.message.content, answer.raw["usage"])

for piece in llm.stream_chat([ChatMessage(role="user", content="Count from 1 to 10.")]):
    print(piece.delta, end="|", flush=True)  # leaving this loop early aborts the request in vLLM
print()


async def main() -> None:
    questions = [f"What is the capital of {country}?" for country in ("Italy", "Spain")]
    for answer in await asyncio.gather(*(llm.acomplete(question) for question in questions)):
        print(answer.text)


asyncio.run(main())

# As many at once as the engine takes, in order; one that can't be answered, being too long, leaves the others alone.
for result in llm.complete_batch(["What is the capital of Japan?", "word " * 10_000], return_exceptions=True):
    print(f"{type(result).__name__}: {result}" if isinstance(result, Exception) else result.text)
