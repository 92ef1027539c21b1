"""LangChain models on a shared local vLLM: ChatVLLM and VLLM."""

from langchain_vllm_local.chat_models import ChatVLLM
from langchain_vllm_local.llms import VLLM

__all__ = ["VLLM", "ChatVLLM"]
