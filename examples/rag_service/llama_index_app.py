"""The service in LlamaIndex: ``uvicorn --app-dir examples --factory rag_service.llama_index_app:app``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index_vllm_local import VLLM, VLLMEmbedding
from rag_service.config import Config, config_of_this_process
from rag_service.service import Event, Text, Usage, make_app
from rag_service.store import Source, Store


class StoreRetriever(BaseRetriever):
    """The store as LlamaIndex asks it."""

    def __init__(self, store: Store, embed_model: VLLMEmbedding, count: int) -> None:
        super().__init__()
        self._store, self._embed_model, self._count = store, embed_model, count

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = await self._embed_model.aget_query_embedding(query_bundle.query_str)
        return nodes_of(await asyncio.to_thread(self._store.nearest, vector, self._count))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = self._embed_model.get_query_embedding(query_bundle.query_str)
        return nodes_of(self._store.nearest(vector, self._count))


def nodes_of(sources: list[Source]) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=each.text, metadata={"document": each.document}), score=each.score)
        for each in sources
    ]


class LlamaIndexRag:
    """Documents in, answers out."""

    def __init__(self, config: Config, store: Store) -> None:
        self._llm = VLLM(**config.chat)  # starts nothing yet: an engine appears on its first call
        self._embed_model = VLLMEmbedding(**config.embeddings)
        self.engines = {"chat": self._llm.engine, "embeddings": self._embed_model.engine}
        self._store = store
        # A "token" is a character here: sizes need no tokenizer, which a remote server may not offer.
        self._splitter = SentenceSplitter(chunk_size=config.chunk_characters, chunk_overlap=0, tokenizer=list)
        self._retriever = StoreRetriever(store, self._embed_model, config.sources)

    async def add(self, name: str, text: str) -> None:
        chunks = await asyncio.to_thread(self._splitter.split_text, text)
        vectors = await self._embed_model.aget_text_embedding_batch(chunks)
        await asyncio.to_thread(self._store.put, name, text, chunks, vectors)

    async def answer(self, question: str) -> AsyncGenerator[Event]:
        found = await self._retriever.aretrieve(question)
        yield [Source(each.metadata["document"], each.text, each.score or 0.0) for each in found]
        context = "\n\n".join(each.text for each in found)
        messages = CHAT_TEXT_QA_PROMPT.format_messages(context_str=context, query_str=question)
        async for piece in await self._llm.astream_chat(messages):
            if piece.delta:
                yield Text(piece.delta)
            if used := (piece.raw or {}).get("usage"):
                yield Usage(used["prompt_tokens"], used["completion_tokens"])


def app() -> Any:
    """Made when it is asked for: ``uvicorn --factory``."""
    return make_app(LlamaIndexRag, config_of_this_process())
