"""LlamaIndex on the shared vLLM engine of this machine, or on a vLLM server somebody else runs."""

from llama_index_vllm_local.llms import VLLM

__all__ = ["VLLM"]
