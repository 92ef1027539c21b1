"""LlamaIndex models on a shared local vLLM: VLLM, VLLMEmbedding, VLLMRerank, VLLMSparseEmbedding, VLLMTextSplitter.

Each class is imported on first use, so an app loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_vllm_local.embeddings import VLLMEmbedding
    from llama_index_vllm_local.llms import VLLM
    from llama_index_vllm_local.rerank import VLLMRerank
    from llama_index_vllm_local.sparse_embeddings import VLLMSparseEmbedding
    from llama_index_vllm_local.text_splitter import VLLMTextSplitter

    __version__: str

_HOME = {
    "VLLM": "llms",
    "VLLMEmbedding": "embeddings",
    "VLLMRerank": "rerank",
    "VLLMSparseEmbedding": "sparse_embeddings",
    "VLLMTextSplitter": "text_splitter",
}

__all__ = ["VLLM", "VLLMEmbedding", "VLLMRerank", "VLLMSparseEmbedding", "VLLMTextSplitter"]

if not TYPE_CHECKING:  # checkers would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.import_module("shared_engine").__version__
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
