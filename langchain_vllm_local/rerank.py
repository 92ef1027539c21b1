"""VLLMRerank: the shared engine as a LangChain document compressor that keeps what fits the query best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field

from langchain_vllm_local._engine_model import LangChainModel
from langchain_vllm_local._errors import as_langchains_failures, langchain_errors
from shared_engine.adapting.framework_model import PoolingModel
from shared_engine.adapting.pooling_requests import PartialList, RerankRequest

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks

    from shared_engine.results import RerankResult


class VLLMRerank(LangChainModel, PoolingModel, Serializable, BaseDocumentCompressor):
    """A LangChain document compressor that keeps what fits the query best, on a local vLLM, which starts on the first
    call and is shared by every object and process with equal settings.

    Its engine is separate from a chat model's; on one GPU, give each its share of the memory with
    ``gpu_memory_utilization``.

    Setup::

        pip install "vllm-local[langchain]" && vllm-local install

    The model is a cross-encoder with one label, or an embedding model, whose score is the cosine of query and
    document. Every setting of shared_engine.EngineSettings is an argument, under its own name, with its environment
    variable::

        from langchain_vllm_local import VLLMRerank

        reranker = VLLMRerank(model="BAAI/bge-reranker-base", top_n=3)  # starts nothing yet

    Copies of the best documents come back, best first, each with its score::

        for document in reranker.compress_documents(documents, "Which river flows through Basel?"):
            print(document.metadata["relevance_score"], document.page_content)

    Behind a retriever that fetches more than is needed::

        def retrieve(query: str) -> list[Document]:
            return list(reranker.compress_documents(fetch.invoke(query), query))

        retriever = RunnableLambda(retrieve)

    docs/langchain.md, section "Embeddings, RAG, reranking", shows the rest: language models as rerankers, documents
    that are too long, remote servers.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors; each is also a class of langchain_core.exceptions,
            such as ContextOverflowError or ModelTimeoutError.
    """

    model_config = ConfigDict(extra="forbid")

    top_n: Annotated[int | None, Field(ge=1)] = 3
    """How many documents to keep. None: all."""

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> PartialList[Document]:
        """Copies of the ``top_n`` documents that fit the query best, best first.

        Their metadata has the score too, as ``relevance_score``. The list has ``failures`` (``index`` and ``error`` of
        each document that has no score, see ``on_error``) and ``indices``.
        """
        with langchain_errors():
            return _ranked(documents, self.engine.rerank(**self._request(documents, query)))

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002
    ) -> PartialList[Document]:
        """See ``compress_documents``."""
        with langchain_errors():
            return _ranked(documents, await self.engine.arerank(**self._request(documents, query)))

    def _request(self, documents: Sequence[Document], query: str) -> RerankRequest:
        return RerankRequest(
            query=query,
            documents=[document.page_content for document in documents],
            top_n=self.top_n,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            on_error=self.on_error,
            extra_body=self.extra_body,
        )


def _ranked(documents: Sequence[Document], result: RerankResult) -> PartialList[Document]:
    ranked = [_scored(documents[each.index], each.relevance_score) for each in result.results]
    return PartialList(ranked, as_langchains_failures(result.failures), result.indices)


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
