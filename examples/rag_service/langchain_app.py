"""The service in LangChain: ``uvicorn --app-dir examples --factory rag_service.langchain_app:app``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from rag_service.config import Config, config_of_this_process
from rag_service.service import Event, Text, Usage, make_app
from rag_service.store import Source, Store

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "Answer the user's questions based on the below context:\n\n{context}"), ("user", "{question}")]
)


class StoreRetriever(BaseRetriever):
    """The store as LangChain asks it."""

    store: Any
    embeddings: VLLMEmbeddings
    count: int

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,  # noqa: ARG002
    ) -> list[Document]:
        vector = await self.embeddings.aembed_query(query)
        return documents_of(await asyncio.to_thread(self.store.nearest, vector, self.count))

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun  # noqa: ARG002
    ) -> list[Document]:  # fmt: skip
        return documents_of(self.store.nearest(self.embeddings.embed_query(query), self.count))


def documents_of(sources: list[Source]) -> list[Document]:
    return [
        Document(page_content=each.text, metadata={"document": each.document, "score": each.score}) for each in sources
    ]


class LangChainRag:
    """Documents in, answers out."""

    def __init__(self, config: Config, store: Store) -> None:
        llm = ChatVLLM(**config.chat)  # starts nothing yet: an engine appears on its first call
        embeddings = VLLMEmbeddings(**config.embeddings)
        self.engines = {"chat": llm.engine, "embeddings": embeddings.engine}
        self._store = store
        self._embeddings = embeddings
        self._splitter = RecursiveCharacterTextSplitter(
            chunk_size=config.chunk_characters,
            chunk_overlap=0,
            separators=["\n\n", "\n", ". ", " ", ""],
            keep_separator="end",
        )
        self._retriever = StoreRetriever(store=store, embeddings=embeddings, count=config.sources)
        self._chain = PROMPT | llm

    async def add(self, name: str, text: str) -> None:
        chunks = await asyncio.to_thread(self._splitter.split_text, text)
        vectors = await self._embeddings.aembed_documents(chunks)
        await asyncio.to_thread(self._store.put, name, text, chunks, vectors)

    async def answer(self, question: str) -> AsyncGenerator[Event]:
        found = await self._retriever.ainvoke(question)
        yield [Source(each.metadata["document"], each.page_content, each.metadata["score"]) for each in found]
        context = "\n\n".join(each.page_content for each in found)
        async for piece in self._chain.astream({"context": context, "question": question}):
            if piece.text:
                yield Text(piece.text)
            if used := piece.usage_metadata:
                yield Usage(used["input_tokens"], used["output_tokens"])


def app() -> Any:
    """Made when it is asked for: ``uvicorn --factory``."""
    return make_app(LangChainRag, config_of_this_process())
