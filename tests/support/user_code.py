"""What users write, and what their type checker says it is. Read by mypy in tests/unit/test_user_code.py, never run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, assert_type

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, SecretStr

import langchain_vllm_local as langchain
import llama_index_vllm_local as llama_index
from langchain_vllm_local import ChatVLLM
from shared_engine import (
    EmbeddingResult,
    Engine,
    EngineInfo,
    EngineSettings,
    EngineStats,
    GenerationChunk,
    GenerationParams,
    GenerationResult,
    RerankResult,
)

URLS = ["http://a:8000/v1", "http://b:8000/v1"]


class Person(BaseModel):
    name: str
    age: int


# ---- what constructors take

ChatVLLM(model="Qwen/Qwen3-4B", temperature=0, max_tokens=100, timeout=60, idle_ttl_s=float("inf"))
ChatVLLM(model=Path("models/qwen"), tokenizer=Path("tokenizer"), python=Path("bin/python"), download_dir=Path("hub"))
ChatVLLM(model="Qwen/Qwen3-4B", gpu_ids=[0, 1])
ChatVLLM(model="Qwen/Qwen3-4B", gpu_ids=[[0, 1], [2, 3]])
ChatVLLM(model="Qwen/Qwen3-4B", gpu_ids=("GPU-1", "GPU-2"), engine_args={"max_num_seqs": 64})
ChatVLLM(model="Qwen/Qwen3-4B", lora_adapters={"sql": "/adapters/sql", "chat": Path("chat")}, stop=["\n"])
ChatVLLM(model="Qwen/Qwen3-4B", mode="direct", fallback=["local", "remote"], base_url="http://a:8000/v1")
ChatVLLM(base_url=URLS, api_key=["a", SecretStr("b")], member_weights=[3, 1.5])
ChatVLLM(base_url="http://a:8000/v1", api_key="...", default_headers={"X-Tenant": "a"}, default_query={"v": 1})
ChatVLLM(base_url="http://a:8000/v1", basic_auth="user:password", ssl_ca_certs=Path("ca.pem"))
ChatVLLM(base_url="http://a:8000/v1", proxy="http://proxy:3128", proxy_auth=SecretStr("user:password"))
langchain.VLLM(model_name=Path("models/qwen"), n=2, max_completion_tokens=100, request_timeout=60)
langchain.VLLMEmbeddings(base_url=URLS, api_key="...", dimensions=256)
langchain.VLLMRerank(model=Path("models/reranker"), top_n=3)
llama_index.VLLM(api_base="http://a:8000/v1", api_key="...", system_prompt="Be brief.")
llama_index.VLLMEmbedding(model=Path("models/embedder"), gpu_ids=[0, 1])
llama_index.VLLMRerank(base_url="http://a:8000/v1", api_key=SecretStr("..."))
EngineSettings(base_url=URLS, api_key="...")
GenerationParams(extra_headers={"X-Tenant": "a", "X-Key": SecretStr("b")}, logit_bias={5: 1})

# ---- what settings are read as

settings = EngineSettings(model=Path("models/qwen"))
assert_type(settings.model, str | None)
assert_type(settings.base_url, str | tuple[str, ...] | None)
assert_type(settings.gpu_ids, tuple[tuple[str, ...], ...] | None)
assert_type(settings.fallback, tuple[Literal["local", "direct", "remote"], ...] | None)
assert_type(ChatVLLM(model=Path("models/qwen")).model, str | None)
assert_type(llama_index.VLLM(api_key="...").api_key, SecretStr | tuple[SecretStr, ...] | None)


# ---- what calls give


async def ask_the_engine(engine: Engine, messages: list[dict[str, Any]]) -> None:
    assert_type(engine.chat(messages, temperature=0), GenerationResult)
    assert_type(await engine.achat(messages), GenerationResult)
    assert_type(engine.stream_chat(messages), Generator[GenerationChunk, None, None])
    async for chunk in engine.astream_generate("Hello"):
        assert_type(chunk, GenerationChunk)
    assert_type(engine.chat_batch([messages]), list[GenerationResult])
    assert_type(engine.generate_batch(["a"], return_exceptions=True), list[GenerationResult | Exception])
    assert_type(engine.embed(["a"]), EmbeddingResult)
    assert_type(engine.rerank("a", ["b"]), RerankResult)
    assert_type(engine.count_tokens("a"), int)
    assert_type(engine.status(), EngineInfo)
    assert_type(await engine.astats(), EngineStats)
    with engine as entered:
        assert_type(entered, Engine)


async def ask_langchain(llm: ChatVLLM) -> None:
    assert_type(llm.engine, Engine)
    assert_type(llm.invoke("Hello"), AIMessage)
    assert_type(await llm.ainvoke([("human", "Hello")]), AIMessage)
    for chunk in llm.stream("Hello"):
        assert_type(chunk, AIMessageChunk)
    assert_type(llm.batch(["a", "b"]), list[AIMessage])
    assert_type(await llm.abatch(["a", "b"], return_exceptions=True), list[AIMessage])
    for index, answer in llm.batch_as_completed(["a", "b"]):
        assert_type((index, answer), tuple[int, AIMessage])
    assert_type(llm.bind_tools([len]).invoke("Hello"), AIMessage)
    assert_type(llm.with_structured_output(Person).invoke("Anna is 31."), Person)
    assert_type(llm.with_structured_output(list[int], method="function_calling").invoke("1, 2"), list[int])
    assert_type(llm.with_structured_output(Person, include_raw=True).invoke("Anna is 31."), dict[str, Any])
    assert_type(llm.with_structured_output(["yes", "no"], method="choice").invoke("Is it?"), str)
    assert_type(llm.with_structured_output({"type": "object"}).invoke("Anna is 31."), Any)
    assert_type(langchain.VLLM(model="Qwen/Qwen3-4B").batch(["a"]), list[str])


def embed_with_langchain(embeddings: langchain.VLLMEmbeddings, reranker: langchain.VLLMRerank) -> None:
    assert_type(embeddings.embed_query("a"), list[float])
    for vector in embeddings.embed_documents(["a"]):
        assert_type(vector, list[float])
    for document in reranker.compress_documents([Document("a")], "b"):
        assert_type(document, Document)


async def ask_llama_index(llm: llama_index.VLLM, messages: list[ChatMessage]) -> None:
    assert_type(llm.complete("Hello"), CompletionResponse)
    assert_type(await llm.acomplete("Hello"), CompletionResponse)
    assert_type(llm.chat(messages, temperature=0), ChatResponse)
    for response in llm.stream_chat(messages):
        assert_type(response, ChatResponse)
    async for part in await llm.astream_complete("Hello"):
        assert_type(part, CompletionResponse)
    assert_type(llm.chat_batch([messages]), list[ChatResponse])
    assert_type(await llm.acomplete_batch(["a"], return_exceptions=True), list[CompletionResponse | Exception])
    assert_type(llm.structured_predict(Person, PromptTemplate("{text}"), text="Anna is 31."), Person)
    assert_type(await llm.astructured_predict(Person, PromptTemplate("Anna is 31.")), Person)
