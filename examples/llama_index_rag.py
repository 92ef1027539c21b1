"""A LlamaIndex RAG pipeline on a local vLLM: documents, a retriever, a streamed answer, counted tokens."""

import sys
from pathlib import Path

from llama_index.core import Document, Settings, SimpleKeywordTableIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler

from llama_index_vllm_local import VLLM

counter = TokenCountingHandler()
model = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "tiny_chat")
Settings.callback_manager = CallbackManager([counter])
Settings.llm = VLLM(model=model, temperature=0, gpu_memory_utilization=0.3)

documents = [
    Document(text="The director of the museum is Mara Lindt."),
    Document(text="The reactor of Halden station was built by Ada Norling in 1987."),
    Document(text="Parking at the north gate costs 4 euros a day."),
]
# Keywords find the documents here, so that the example needs no embedding model.
index = SimpleKeywordTableIndex.from_documents(documents)
engine = index.as_query_engine(retriever_mode="simple", num_chunks_per_query=1, streaming=True)

for question in ("Who built the reactor of Halden station?", "Who is the director of the museum?"):
    print(f"> {question}\n  ", end="")
    for piece in engine.query(question).response_gen:
        print(piece, end="", flush=True)
    print()

print(f"tokens: {counter.prompt_llm_token_count} in, {counter.completion_llm_token_count} out")
