"""An official openai client on the shared engine: an answer, a stream, a tool call, a parsed form, no port."""

import sys
from pathlib import Path
from typing import Any

import openai
from pydantic import BaseModel

from shared_engine import Engine

# On a GPU, with a model of your own: Engine(model="Qwen/Qwen3-4B"), and no other setting.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
client = Engine(model=model, gpu_memory_utilization=0.3).openai_client()  # starts nothing yet


class Person(BaseModel):
    name: str
    age: int


def ask(text: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="default", messages=messages, temperature=0, **options)


print(ask("What is the capital of France?").choices[0].message.content)
for chunk in ask("Count from 1 to 10.", stream=True):  # closing it early aborts the request in vLLM
    print(chunk.choices[0].delta.content, end="|")
print()
number = {"type": "integer"}
add = {"name": "add", "parameters": {"type": "object", "properties": {"a": number, "b": number}}}
print(ask("Add 2 and 3.", tools=[{"type": "function", "function": add}]).choices[0].message.tool_calls[0].function)
text = [{"role": "user", "content": "Extract: Anna Smith is 31 years old."}]
print(client.chat.completions.parse(model="default", messages=text, response_format=Person).choices[0].message.parsed)
try:
    ask("word " * 10_000)
except openai.BadRequestError as error:
    print(error.status_code, error.message)
