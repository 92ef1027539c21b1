"""RAG with a VectorStoreIndex: embeddings, reranker and answers, from vLLM engines that come and go by themselves.

Usage: python llama_index_embeddings.py [MODEL [EMBEDDER [RERANKER]]]
"""

import sys
from pathlib import Path

from llama_index.core import Document, Settings, VectorStoreIndex

from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank

# On a GPU, with a model of your own: Qwen/Qwen3-4B, and gpu_memory_utilization=0.7; the rest is for the other two.
_, *given = sys.argv
model = given[0] if given else str(Path(__file__).parent / "tiny_chat")
embedder = given[1] if len(given) > 1 else "sentence-transformers/all-MiniLM-L6-v2"  # downloaded once, like:
reranker = given[2] if len(given) > 2 else "cross-encoder/ms-marco-MiniLM-L6-v2"
Settings.llm = VLLM(model=model, temperature=0, gpu_memory_utilization=0.3)
Settings.embed_model = VLLMEmbedding(model=embedder, gpu_memory_utilization=0.1)
rerank = VLLMRerank(model=reranker, top_n=1, gpu_memory_utilization=0.1)

documents = [
    Document(text="The director of the museum is Mara Lindt."),
    Document(text="The password of the archive is blue-heron-42."),
    Document(text="Parking at the north gate costs 4 euros a day."),
]
index = VectorStoreIndex.from_documents(documents)
engine = index.as_query_engine(similarity_top_k=3, node_postprocessors=[rerank])

for question in ("What is the password of the archive?", "Who is the director of the museum?"):
    answer = engine.query(question)
    print(f"> {question}\n  {answer}")
    for source in answer.source_nodes:
        print(f"  ({source.score:.2f}: {source.text})")
