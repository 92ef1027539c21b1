"""RAG: embeddings and answers from two vLLM engines of this machine, which both come and go by themselves."""

import sys
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings

# On a GPU, with a model of your own: Qwen/Qwen3-4B, and gpu_memory_utilization=0.8; the rest is for the embeddings.
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
embedder = sys.argv[2] if len(sys.argv) > 2 else "sentence-transformers/all-MiniLM-L6-v2"  # downloaded once
llm = ChatVLLM(model=model, temperature=0, gpu_memory_utilization=0.3)
embeddings = VLLMEmbeddings(model=embedder, gpu_memory_utilization=0.1)

texts = [
    "The director of the museum is Mara Lindt.",
    "The password of the archive is blue-heron-42.",
    "Parking at the north gate costs 4 euros a day.",
]
store = InMemoryVectorStore.from_texts(texts, embedding=embeddings)
retriever = store.as_retriever(search_kwargs={"k": 1}) | (lambda documents: documents[0].page_content)
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the user's question based on the context.\n\nContext: {context}"),
        ("user", "{question}"),
    ]
)
chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | llm

for question in ("What is the password of the archive?", "Who is the director of the museum?"):
    print(f"> {question}\n  {chain.invoke(question).text}")
