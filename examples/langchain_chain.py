"""A LangChain chain on a local vLLM: prompt, model, parser. The engine starts on the first call."""

import sys
from pathlib import Path

from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_vllm_local import ChatVLLM

model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
llm = ChatVLLM(model=model, temperature=0, enforce_eager=True)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the user's question based on the context.\n\nContext: {context}"),
        ("user", "{question}"),
    ]
)
chain = prompt | llm | StrOutputParser()
context = "The Norling bridge was opened in 1936. The Norling bridge is 412 metres long."
usage = UsageMetadataCallbackHandler()

for question in ("When was the Norling bridge opened?", "How long is the Norling bridge?"):
    print(f"> {question}\n  ", end="")
    for piece in chain.stream({"context": context, "question": question}, config={"callbacks": [usage]}):
        print(piece, end="", flush=True)
    print()

for counts in usage.usage_metadata.values():
    print(f"tokens: {counts['input_tokens']} in, {counts['output_tokens']} out")
