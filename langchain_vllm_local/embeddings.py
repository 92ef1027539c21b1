"""VLLMEmbeddings: the shared engine as LangChain embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Annotated, ClassVar

from langchain_core.embeddings import Embeddings
from langchain_core.load.serializable import Serializable
from pydantic import ConfigDict, Field

from langchain_vllm_local._engine_model import LangChainModel
from langchain_vllm_local._errors import as_langchains_failures, langchain_errors
from shared_engine.adapting.framework_model import EmbeddingModel
from shared_engine.adapting.pooling_requests import TEXTS_IN_A_REQUEST, EmbedRequest, InputType, PartialList, list_of
from shared_engine.declared import UNSET, Alias
from shared_engine.results import EmbeddingResult, OnError


class VLLMEmbeddings(LangChainModel, EmbeddingModel, Serializable, Embeddings):
    """LangChain embeddings on a local vLLM, which starts on the first call and is shared by every object and process
    with equal settings.

    Its engine is separate from a chat model's. On one GPU, give each its share of the memory, such as
    ``gpu_memory_utilization=0.1`` here and 0.8 there: at the default of 0.9 one would evict the other.

    Setup::

        pip install "vllm-local[langchain]" && vllm-local install

    Every setting of shared_engine.EngineSettings is an argument, under its own name, with its environment variable::

        from langchain_vllm_local import VLLMEmbeddings

        embeddings = VLLMEmbeddings(model="BAAI/bge-small-en-v1.5")  # starts nothing yet
        vector = embeddings.embed_query("Which river flows through Basel?")

    Many texts come back in order; they are sent ``chunk_size`` at a time, with enough requests in flight to keep the
    engine busy::

        vectors = await embeddings.aembed_documents(texts)

    In a vector store::

        store = InMemoryVectorStore.from_texts(texts, embedding=embeddings)
        print(store.as_retriever(search_kwargs={"k": 1}).invoke("Which river flows through Basel?"))

    docs/langchain.md, section "Embeddings, RAG, reranking", shows the rest: prefixes for queries and documents,
    shorter vectors, texts that are too long, normalisation, remote servers.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors; each is also a class of langchain_core.exceptions,
            such as ContextOverflowError or ModelTimeoutError.
    """

    model_config = ConfigDict(extra="forbid")

    dimensions: Annotated[int | None, Field(ge=1)] = None
    """Length of the vectors. None: the model's own; another is for models that were trained for it (Matryoshka)."""
    query_prefix: str | None = None
    """Put before each query. None: what the model's files say. Alias: ``query_instruction``."""
    document_prefix: str | None = None
    """Put before each document. None: what the model's files say. Alias: ``embed_instruction``."""
    chunk_size: Annotated[int, Field(ge=1)] = TEXTS_IN_A_REQUEST
    """Most texts in one request. Alias: ``batch_size``."""
    show_progress_bar: bool = False
    """Show how many documents have been embedded. (``show_progress`` is about the engine's start.)"""

    _aliases: ClassVar[Mapping[str, str]] = {
        **LangChainModel._aliases,
        "query_instruction": "query_prefix",
        "embed_instruction": "document_prefix",
        "batch_size": "chunk_size",
    }
    if TYPE_CHECKING:
        query_instruction: Alias[str | None] = UNSET
        embed_instruction: Alias[str | None] = UNSET
        batch_size: Alias[int] = UNSET

    def embed_documents(
        self,
        texts: list[str],
        *,
        on_error: OnError | None = None,
        checkpoint: str | PathLike[str] | None = None,
    ) -> PartialList[list[float]]:
        """One vector for each text, in order.

        Args:
            on_error: for this call; also ``skip``: the texts that failed are left out. The list has ``failures``
                (``index`` and ``error`` of each) and ``indices`` (of the texts with a vector).
            checkpoint: a file for the vectors, from which a later call with the same texts goes on where this one was
                ended, by ``kill -9`` too. ``engine.embed_file`` does without all vectors in memory.
        """
        with langchain_errors(), self._shown(texts) as on_progress:
            request = self._request(texts, "document", on_error)
            if checkpoint is not None:
                file = self.engine.embed_file(path=checkpoint, **request, on_progress=on_progress)
                return _translated(list_of(file, request["on_error"]))
            return _vectors(self.engine.embed(**request, on_progress=on_progress))

    async def aembed_documents(
        self,
        texts: list[str],
        *,
        on_error: OnError | None = None,
        checkpoint: str | PathLike[str] | None = None,
    ) -> PartialList[list[float]]:
        """See ``embed_documents``."""
        with langchain_errors(), self._shown(texts) as on_progress:
            request = self._request(texts, "document", on_error)
            if checkpoint is not None:
                file = await self.engine.aembed_file(path=checkpoint, **request, on_progress=on_progress)
                return _translated(await asyncio.to_thread(list_of, file, request["on_error"]))
            return _vectors(await self.engine.aembed(**request, on_progress=on_progress))

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        with langchain_errors():
            return self.engine.embed(**self._request([text], "query", "raise")).embeddings[0]

    async def aembed_query(self, text: str) -> list[float]:
        """See ``embed_query``."""
        with langchain_errors():
            return (await self.engine.aembed(**self._request([text], "query", "raise"))).embeddings[0]

    def _request(self, texts: Sequence[str], input_type: InputType, on_error: OnError | None) -> EmbedRequest:
        return EmbedRequest(
            texts=texts,
            input_type=input_type,
            prefix=self.query_prefix if input_type == "query" else self.document_prefix,
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            batch_size=self.chunk_size,
            on_error=on_error or self.on_error,
            extra_body=self.extra_body,
        )

    @contextmanager
    def _shown(self, texts: Sequence[str]) -> Iterator[Callable[[int], object] | None]:
        if not self.show_progress_bar or not texts:
            yield None
            return
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(total=len(texts), unit="text", dynamic_ncols=True) as bar:
            yield bar.update


def _vectors(result: EmbeddingResult) -> PartialList[list[float]]:
    return _translated(PartialList(result.embeddings, result.failures, result.indices))


def _translated(vectors: PartialList[list[float]]) -> PartialList[list[float]]:
    vectors.failures = as_langchains_failures(vectors.failures)
    return vectors
