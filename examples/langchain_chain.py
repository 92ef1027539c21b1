"""A LangChain chain on a local vLLM: prompt, model, parser. The engine starts on the first call."""

import sys
from pathlib import Path

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_vllm_local import ChatVLLM

model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, gpu_memory_utilization=0.3)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the user's question based on the context.\n\nContext: {context}"),
        ("user", "{question}"),
    ]
)
chain = prompt | llm | StrOutputParser()
context = "The director of the museum is Ada Norling. The password of the archive is blue-heron-42."
usage = UsageMetadataCallbackHandler()

for question in ("What is the password of the archive?", "Who is the owner of the ship?"):
    print(f"> {question}\n  ", end="")
    for piece in chain.stream({"context": context, "question": question}, config={"callbacks": [usage]}):
        print(piece, end="", flush=True)
    print()

for counts in usage.usage_metadata.values():
    print(f"tokens: {counts['input_tokens']} in, {counts['output_tokens']} out")
