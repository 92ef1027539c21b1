"""Answers that are objects of a class, whole or as they come. vLLM lets through no token that would not fit it."""

import sys
from pathlib import Path

from llama_index.core import PromptTemplate
from pydantic import BaseModel, Field

from llama_index_vllm_local import VLLM
from shared_engine import LengthFinishReasonError


class Person(BaseModel):
    """A person who is mentioned in a text."""

    name: str
    age: int = Field(ge=0, le=120)


# On a GPU, with a model of your own: VLLM(model="Qwen/Qwen3-4B", max_tokens=512).
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = VLLM(model=model, temperature=0, max_tokens=64, gpu_memory_utilization=0.3)
prompt, text = PromptTemplate("{text}"), "Anna Smith is 31 years old."

print(repr(llm.structured_predict(Person, prompt, text=text)))

for partial in llm.stream_structured_predict(Person, prompt, text=text):
    print(partial)

# As an LLM of its own, such as for a query engine; the tokens are counted as for any answer.
answer = llm.as_structured_llm(Person).complete(text)
print(answer.raw.age, answer.text)

# An answer that max_tokens cut off is an error.
try:
    llm.structured_predict(Person, prompt, llm_kwargs={"max_tokens": 4}, text=text)
except LengthFinishReasonError as error:
    print(f"LengthFinishReasonError: {error}")
