"""What the docstrings of the adapters' classes show runs as it is, against a server that answers anything."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document as LlamaIndexDocument
from llama_index.core import MockEmbedding, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel

from shared_engine.settings import ENVIRONMENT
from tests.support.paths import REPOSITORY
from tests.support.pooling_server import embeds_and_reranks
from tests.support.remote_server import RemoteServer, chat_answer, running_server

CLASSES = [
    "langchain_vllm_local.ChatVLLM",
    "langchain_vllm_local.VLLM",
    "langchain_vllm_local.VLLMEmbeddings",
    "langchain_vllm_local.VLLMRerank",
    "llama_index_vllm_local.VLLM",
    "llama_index_vllm_local.VLLMEmbedding",
    "llama_index_vllm_local.VLLMRerank",
]
each_class = pytest.mark.parametrize("name", CLASSES)
TEXTS = ["The Rhine flows through Basel.", "The violin has four strings."]


def named(name: str) -> type:
    module, _, class_name = name.rpartition(".")
    found: type = getattr(importlib.import_module(module), class_name)
    return found


def code_blocks(model_class: type) -> Iterator[str]:
    docstring = inspect.getdoc(model_class) or ""
    for block in re.findall(r"::\n\n((?:(?:    .*)?\n)+?)(?=\n?\S|\Z)", docstring + "\n"):
        if not block.strip().startswith("pip install"):
            yield textwrap.dedent(block)


async def answers_anything(request: web.Request) -> web.StreamResponse:
    """A person, as JSON; whatever is embedded or ranked as the pooling server does it."""
    body = await request.json()
    if "input" in body or "documents" in body:
        return await embeds_and_reranks(request)
    answer = chat_answer('{"name": "Anna", "age": 31}')
    answer["choices"][0]["text"] = "Basel."
    if not body.get("stream"):
        return web.json_response(answer)
    choice = {"index": 0, "delta": {"content": "Aare"}, "text": "Basel.", "finish_reason": "stop"}
    event = json.dumps({"id": "c", "model": "served", "choices": [choice], "usage": answer["usage"]})
    return web.Response(text=f"data: {event}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    """Whoever names no server is sent here, so that nothing is downloaded and started."""
    with running_server() as server:
        server.handler = answers_anything
        monkeypatch.setenv(ENVIRONMENT["base_url"], server.url)
        yield server


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the docstrings take for granted: imports of the frameworks, texts, an index, a retriever."""
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=2))
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    documents = [LlamaIndexDocument(text=text) for text in TEXTS]
    return {
        "BaseModel": BaseModel,
        "ChatMessage": ChatMessage,
        "Document": Document,
        "InMemoryVectorStore": InMemoryVectorStore,
        "PromptTemplate": PromptTemplate,
        "RunnableLambda": RunnableLambda,
        "Settings": Settings,
        "VectorStoreIndex": VectorStoreIndex,
        "texts": TEXTS,
        "fetch": RunnableLambda(lambda _: [Document(text) for text in TEXTS]),
        "index": VectorStoreIndex.from_documents(documents),
        "nodes": [NodeWithScore(node=TextNode(text=text)) for text in TEXTS],
    }


@each_class
async def test_the_code_of_a_class_docstring_runs(name: str, server: RemoteServer, names: dict[str, Any]) -> None:
    is_langchain = name.startswith("langchain")
    names["documents"] = [Document(text) if is_langchain else LlamaIndexDocument(text=text) for text in TEXTS]
    blocks = list(code_blocks(named(name)))
    assert len(blocks) == 3
    for block in blocks:
        code = compile(block, "docstring", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)
        else:
            await asyncio.to_thread(exec, code, names)
    assert name.rpartition(".")[2] in names
    assert "Rerank" not in name or not is_langchain or len(names["retriever"].invoke("Which river?")) == 2
    assert server.requests


@each_class
def test_a_class_docstring_names_a_page_and_a_section_that_exist(name: str) -> None:
    docstring = " ".join((inspect.getdoc(named(name)) or "").split())
    page, section = re.search(r"docs/(\w+)\.md(?:, section \"([^\"]+)\")?", docstring).groups()  # type: ignore[union-attr]
    text = (REPOSITORY / "docs" / f"{page}.md").read_text()
    assert section is None or f"## {section}\n" in text
