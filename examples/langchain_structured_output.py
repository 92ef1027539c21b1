"""Answers that are values: an object of a class, one of several words, or a match. vLLM lets through no other token."""

import sys
from pathlib import Path

from pydantic import BaseModel, Field

from langchain_vllm_local import ChatVLLM


class Person(BaseModel):
    """A person who is mentioned in a text."""

    name: str
    age: int = Field(ge=0, le=120)


# On a GPU, with a model of your own: ChatVLLM(model="Qwen/Qwen3-4B", max_tokens=512).
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, max_tokens=64, gpu_memory_utilization=0.3)
text = "Anna Smith is 31 years old."

person = llm.with_structured_output(Person)
print(repr(person.invoke(text)))

# An answer that max_tokens cut off is an error, which is raised, or given beside the message.
cut = llm.with_structured_output(Person, include_raw=True, max_tokens=4).invoke(text)
print(type(cut["parsing_error"]).__name__, repr(cut["raw"].text), cut["parsed"])

colour = llm.with_structured_output(["red", "blue"], method="choice")
print(colour.invoke("What colour is the sky?"))

year = llm.with_structured_output(r"(19|20)[0-9]{2}", method="regex")
print(year.invoke("In which year was the bridge opened?"))
