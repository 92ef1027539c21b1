"""VLLMSparseEmbedding: the shared engine as a LlamaIndex model of sparse vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from pydantic import ConfigDict

from shared_engine.adapting.framework_model import EmbeddingModel
from shared_engine.adapting.pooling_requests import TEXTS_IN_A_REQUEST, SparseRequest, with_sparse_vectors
from shared_engine.declared import UNSET, Alias
from shared_engine.settings import EngineSettings

_UNKNOWN = "unknown"  # what LlamaIndex calls a model without a name


class VLLMSparseEmbedding(EmbeddingModel, BaseSparseEmbedding):
    """A LlamaIndex model of sparse vectors (weights by token id) on a local vLLM, which starts on the first call and is
    shared by every object and process with equal settings.

    Setup::

        pip install "vllm-local[llama-index]" && vllm-local install

    The model is a SPLADE, or BGE-M3, which has dense vectors too: those are VLLMEmbedding's, on another engine. Every
    setting of shared_engine.EngineSettings is an argument, under its own name, with its environment variable::

        from llama_index_vllm_local import VLLMSparseEmbedding

        sparse_model = VLLMSparseEmbedding(model="BAAI/bge-m3")  # starts nothing yet
        weights = sparse_model.get_query_embedding("Which river flows through Basel?")

    As the function that a Qdrant store takes for sparse vectors::

        def sparse(texts):
            vectors = sparse_model.get_text_embedding_batch(texts)
            return [list(each) for each in vectors], [list(each.values()) for each in vectors]

    With ``on_error="none"`` a text that failed has an empty vector.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range;
            on a call, where the model's vectors are dense.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors.
    """

    model_config = ConfigDict(extra="forbid")
    _aliases: ClassVar[Mapping[str, str]] = {"api_base": "base_url"}
    if TYPE_CHECKING:
        api_base: Alias[str | Sequence[str] | None] = UNSET

    @classmethod
    def class_name(cls) -> str:
        return "VLLMSparseEmbedding"

    def _use(self, settings: EngineSettings) -> None:
        if not settings.is_remote:
            args = with_sparse_vectors(str(settings.model), settings.model_folder(), settings.engine_args)
            settings = settings.model_copy(update={"engine_args": args})
        super()._use(settings)
        self.__dict__["model_name"] = settings.model or _UNKNOWN

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return self._get_text_embeddings([query])[0]

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([query]))[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return [vector or {} for vector in self.engine.embed_sparse(**self._request(texts)).embeddings]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        result = await self.engine.aembed_sparse(**self._request(texts))
        return [vector or {} for vector in result.embeddings]

    def _request(self, texts: Sequence[str]) -> SparseRequest:
        return SparseRequest(
            texts=texts,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            batch_size=min(self.embed_batch_size, TEXTS_IN_A_REQUEST),
            on_error=self.on_error,
            extra_body=self.extra_body,
        )

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings that were given, without secrets."""
        return self.model_dump(exclude_unset=True, **kwargs)
