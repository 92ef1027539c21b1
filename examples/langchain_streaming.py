"""Answers as they come: printed piece by piece, two at once, and as the events of a chain."""

import asyncio
import sys
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate

from langchain_vllm_local import ChatVLLM

# On a GPU, with a model of your own: ChatVLLM(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, gpu_memory_utilization=0.3)

whole = None
for chunk in llm.stream("Count from 1 to 10."):  # leaving this loop early aborts the request in vLLM
    print(chunk.text, end="|", flush=True)
    whole = chunk if whole is None else whole + chunk
print()
if whole is not None:
    print(f"{whole.response_metadata['finish_reason']}, {whole.usage_metadata}")


async def show(question: str) -> None:
    async for chunk in llm.astream(question):
        print(f"{question} {chunk.text!r}")


async def main() -> None:
    await asyncio.gather(show("What is the capital of France?"), show("What is the capital of Italy?"))
    chain = ChatPromptTemplate.from_template("What is the capital of {country}?") | llm
    async for event in chain.astream_events({"country": "Spain"}, version="v2"):
        if event["event"] == "on_chat_model_stream":
            print(event["data"]["chunk"].text, end="|", flush=True)
    print()


asyncio.run(main())
