"""VLLMEmbedding: the shared engine as a LlamaIndex embedding model."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from pydantic import ConfigDict, Field, model_validator

from llama_index_vllm_local._engine_model import LlamaIndexModel
from shared_engine.adapting.framework_model import PoolingModel
from shared_engine.adapting.pooling_requests import TEXTS_IN_A_REQUEST, EmbedRequest, InputType
from shared_engine.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from typing import Self

    from shared_engine.settings import EngineSettings

_UNKNOWN = "unknown"  # what LlamaIndex calls a model without a name
_WHOLE_LIST = 2048  # the most that BaseEmbedding allows, and what a VectorStoreIndex embeds at a time

# Without LlamaIndex's spans around them: ours, which override them, have their own.
_embed_batches: Callable[..., list[Embedding]] = inspect.unwrap(BaseEmbedding.get_text_embedding_batch)
_aembed_batches: Callable[..., Awaitable[list[Embedding]]] = inspect.unwrap(BaseEmbedding.aget_text_embedding_batch)

_on_progress: ContextVar[Callable[[int], object] | None] = ContextVar("on_progress", default=None)


class VLLMEmbedding(LlamaIndexModel, PoolingModel, BaseEmbedding):
    """A LlamaIndex embedding model on a local vLLM, which starts on the first call and is shared by every object and
    process with equal settings.

    Its engine is separate from an LLM's. On one GPU, give each its share of the memory, such as
    ``gpu_memory_utilization=0.1`` here and 0.8 there: at the default of 0.9 one would evict the other.

    Setup::

        pip install "vllm-local[llama-index]" && vllm-local install

    Every setting of shared_engine.EngineSettings is an argument, under its own name, with its environment variable;
    ``model_name`` is another name of ``model``::

        from llama_index_vllm_local import VLLMEmbedding

        embed_model = VLLMEmbedding(model="BAAI/bge-small-en-v1.5")  # starts nothing yet
        vector = embed_model.get_query_embedding("Which river flows through Basel?")

    Many texts come back in order::

        vectors = await embed_model.aget_text_embedding_batch(texts)

    As the embedding model of everything in LlamaIndex::

        Settings.embed_model = embed_model
        index = VectorStoreIndex.from_documents(documents)

    docs/llama_index.md, section "RAG, embeddings, reranking", shows the rest: instructions for queries and texts,
    shorter vectors, texts that are too long, normalisation, remote servers.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors.
    """

    model_config = ConfigDict(extra="forbid")

    embed_batch_size: Annotated[int, Field(ge=1, le=_WHOLE_LIST)] = _WHOLE_LIST
    """Texts that LlamaIndex hands over together, with one event for all of them; errors number the texts of one batch.
    They go to the engine as requests of at most 64, as many at once as keep it busy. When the batches are small, it
    waits for LlamaIndex, which sends one after the other."""
    embeddings_cache: Any | None = Field(default=None, exclude=True)
    """A key-value store of LlamaIndex. Its keys are texts alone: use one for each model and instruction."""
    dimensions: Annotated[int | None, Field(ge=1)] = None
    """Length of the vectors. None: the model's own; another is for models that were trained for it (Matryoshka)."""
    query_instruction: str | None = None
    """Put before each query. None: what the model's files say."""
    text_instruction: str | None = None
    """Put before each text. None: what the model's files say."""

    @classmethod
    def class_name(cls) -> str:
        return "VLLMEmbedding"

    # ---- one model under two names

    @model_validator(mode="before")
    @classmethod
    def _replace_model_name(cls, values: Any) -> Any:
        return _with_one_model(values) if isinstance(values, Mapping) else values

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self.__dict__["model_name"] = settings.model or _UNKNOWN

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model_name":
            name, value = "model", _with_one_model({name: value}).get("model")
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; with ``update`` on top, checked as on construction."""
        return super().model_copy(update=_with_one_model(update or {}), deep=deep)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings that were given, without ``api_key``; and the model, wherever its name came from.

        LlamaIndex's IngestionPipeline takes this for the key of its cache of vectors.
        """
        return {**super().to_dict(**kwargs), "model_name": self.model_name}

    # ---- many texts: LlamaIndex's batches, and a bar that shows texts instead of batches

    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **kwargs: Any) -> list[Embedding]:
        """One vector for each text, in order."""
        _check_list(texts)
        with _shown(len(texts), show_progress):
            return _embed_batches(self, texts, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """See ``get_text_embedding_batch``."""
        _check_list(texts)
        with _shown(len(texts), show_progress):
            return await _aembed_batches(self, texts, **kwargs)

    # ---- what LlamaIndex's methods call

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.engine.embed(**self._request([query], "query")).embeddings[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self.engine.aembed(**self._request([query], "query"))).embeddings[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        request = self._request(texts, "document")
        return self.engine.embed(**request, on_progress=_on_progress.get()).embeddings

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        request = self._request(texts, "document")
        return (await self.engine.aembed(**request, on_progress=_on_progress.get())).embeddings

    def _request(self, texts: Sequence[str], input_type: InputType) -> EmbedRequest:
        return EmbedRequest(
            texts=texts,
            input_type=input_type,
            prefix=self.query_instruction if input_type == "query" else self.text_instruction,
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            batch_size=min(self.embed_batch_size, TEXTS_IN_A_REQUEST),
            extra_body=self.extra_body,
        )


def _with_one_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``model`` in the place of LlamaIndex's ``model_name``.

    Raises:
        SettingsError: there are both, and they differ.
    """
    named = {name: value for name, value in values.items() if name != "model_name"}
    model_name = values.get("model_name")
    if "model_name" not in values or model_name == _UNKNOWN:
        return named
    model = named.get("model")
    if None not in (model, model_name) and model != model_name:
        raise SettingsError(
            f"model = {model!r} and model_name = {model_name!r} are the same setting: pass only one of them"
        )
    return {**named, "model": model_name if model is None else model}


@contextmanager
def _shown(total: int, show_progress: bool) -> Iterator[None]:
    if not show_progress or not total:
        yield
        return
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, desc="Generating embeddings", unit="text", dynamic_ncols=True) as bar:
        before = _on_progress.set(bar.update)
        try:
            yield
        finally:
            _on_progress.reset(before)
        bar.update(total - bar.n)  # those that a cache had


def _check_list(texts: object) -> None:
    if isinstance(texts, str):
        raise InvalidInputError(f"texts must be a list of strings, got one string: {texts!r:.80}")
