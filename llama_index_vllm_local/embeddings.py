"""VLLMEmbedding: the shared engine as a LlamaIndex embedding model."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageType, MetadataMode
from pydantic import ConfigDict, Field, model_validator

from llama_index_vllm_local._blocks import to_openai_parts
from llama_index_vllm_local._engine_model import LlamaIndexModel
from shared_engine.adapting.checks import check_items
from shared_engine.adapting.framework_model import EmbeddingModel
from shared_engine.adapting.pooling_requests import (
    TEXTS_IN_A_REQUEST,
    EmbedRequest,
    InputType,
    MessageRequest,
    PartialList,
    VectorFile,
)
from shared_engine.errors import InvalidInputError, SettingsError, VLLMError
from shared_engine.results import EmbeddingResult, ItemFailure, OnError

if TYPE_CHECKING:
    from typing import Self

    from shared_engine.settings import EngineSettings

_UNKNOWN = "unknown"  # what LlamaIndex calls a model without a name
_WHOLE_LIST = 2048  # the most that BaseEmbedding allows, and what a VectorStoreIndex embeds at a time

# Without LlamaIndex's spans around them: ours, which override them, have their own.
_embed_batches: Callable[..., list[Embedding]] = inspect.unwrap(BaseEmbedding.get_text_embedding_batch)
_aembed_batches: Callable[..., Awaitable[list[Embedding]]] = inspect.unwrap(BaseEmbedding.aget_text_embedding_batch)

_CACHED = "embeddings"  # the collection in which LlamaIndex keeps vectors


class _List:
    """The list of texts of one call, on its way through LlamaIndex's batches.

    Attributes:
        errors: of the texts that failed, by the texts' identity: which batch they are in is not known here.
    """

    def __init__(self, on_error: OnError = "raise") -> None:
        self.on_error = on_error
        self.on_progress: Callable[[int], object] | None = None
        self.errors: dict[int, VLLMError] = {}
        self._file: VectorFile | None = None
        self._places: dict[int, int] = {}

    def use(self, file: VectorFile, texts: Sequence[str]) -> None:
        """The vectors are there already."""
        self._file, self._places = file, {id(text): place for place, text in enumerate(texts)}
        self.errors |= {id(texts[failure.index]): failure.error for failure in file.failures}

    def known(self, texts: Sequence[str]) -> list[Embedding] | None:
        """The vectors of texts, where they are there already."""
        return None if self._file is None else [self._file[self._places[id(text)]] or [] for text in texts]

    def vectors_of(self, texts: Sequence[str], result: EmbeddingResult) -> list[Embedding]:
        """One for each text, which LlamaIndex's events and batches want: empty for a text that failed."""
        self.errors |= {id(texts[failure.index]): failure.error for failure in result.failures}
        return [vector or [] for vector in result.embeddings]


_list: ContextVar[_List] = ContextVar("_list", default=_List())  # noqa: B039 (the default never has errors)


class VLLMEmbedding(LlamaIndexModel, EmbeddingModel, MultiModalEmbedding):
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

    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        *,
        on_error: OnError | None = None,
        checkpoint: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> PartialList[Embedding]:
        """One vector for each text, in order.

        Args:
            on_error: for this call; also ``skip``: the texts that failed are left out. The list has ``failures``
                (``index`` and ``error`` of each) and ``indices`` (of the texts with a vector).
            checkpoint: a file for the vectors, from which a later call with the same texts goes on where this one was
                ended, by ``kill -9`` too. ``engine.embed_file`` does without all vectors in memory.
        """
        given, sent, failures = self._checked_list(texts, on_error)
        with _shown(given, len(sent), show_progress):
            if checkpoint is not None:
                request = self._request(texts, "document", given.on_error)
                given.use(self.engine.embed_file(path=checkpoint, **request, on_progress=given.on_progress), texts)
            vectors = _embed_batches(self, sent, **kwargs)
        return _listed(given, texts, failures, vectors)

    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        *,
        on_error: OnError | None = None,
        checkpoint: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> PartialList[Embedding]:
        """See ``get_text_embedding_batch``."""
        given, sent, failures = self._checked_list(texts, on_error)
        with _shown(given, len(sent), show_progress):
            if checkpoint is not None:
                request = self._request(texts, "document", given.on_error)
                file = await self.engine.aembed_file(path=checkpoint, **request, on_progress=given.on_progress)
                given.use(file, texts)
            vectors = await _aembed_batches(self, sent, **kwargs)
        return _listed(given, texts, failures, vectors)

    def _checked_list(
        self, texts: list[str], on_error: OnError | None
    ) -> tuple[_List, list[str], dict[int, VLLMError]]:
        """The call; the texts that can be sent; and those that can't, by position."""
        given = _List(on_error or self.on_error)
        if isinstance(texts, str):
            raise InvalidInputError(f"texts must be a list of strings, got one string: {texts!r:.80}")
        if given.on_error == "raise":
            return given, texts, {}
        _, failures = check_items(texts, "texts", given.on_error)
        return given, [text for position, text in enumerate(texts) if position not in failures], failures

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Give nodes their vectors, as a step of an IngestionPipeline. With ``on_error="none"`` a node whose text
        failed has none, and goes to no vector store; with ``"skip"`` it is left out.
        """
        texts, on_error, more = self._of_nodes(nodes, kwargs)
        return _with_vectors(nodes, self.get_text_embedding_batch(texts, **more), on_error)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """See ``__call__``."""
        texts, on_error, more = self._of_nodes(nodes, kwargs)
        return _with_vectors(nodes, await self.aget_text_embedding_batch(texts, **more), on_error)

    def _of_nodes(
        self, nodes: Sequence[BaseNode], given: Mapping[str, Any]
    ) -> tuple[list[str], OnError, dict[str, Any]]:
        on_error: OnError = given.get("on_error") or self.on_error
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        return texts, on_error, {**given, "on_error": "none" if on_error == "skip" else on_error}

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
        given = _list.get()
        known = given.known(texts)
        if known is not None:
            return known
        request = self._request(texts, "document", "raise" if given.on_error == "raise" else "none")
        return given.vectors_of(texts, self.engine.embed(**request, on_progress=given.on_progress))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        given = _list.get()
        known = given.known(texts)
        if known is not None:
            return known
        request = self._request(texts, "document", "raise" if given.on_error == "raise" else "none")
        return given.vectors_of(texts, await self.engine.aembed(**request, on_progress=given.on_progress))

    # As LlamaIndex's own, but that no failure is kept in the cache.

    def _get_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        cache: Any = self.embeddings_cache
        vectors = [_in(cache.get(key=text, collection=_CACHED)) for text in texts]
        missing = [position for position, vector in enumerate(vectors) if vector is None]
        made = self._get_text_embeddings([texts[position] for position in missing]) if missing else []
        for position, vector in zip(missing, made, strict=True):
            vectors[position] = vector
            if vector:
                cache.put(key=texts[position], val={str(uuid.uuid4()): vector}, collection=_CACHED)
        return [vector or [] for vector in vectors]

    async def _aget_text_embeddings_cached(self, texts: list[str]) -> list[Embedding]:
        cache: Any = self.embeddings_cache
        vectors = [_in(await cache.aget(key=text, collection=_CACHED)) for text in texts]
        missing = [position for position, vector in enumerate(vectors) if vector is None]
        made = await self._aget_text_embeddings([texts[position] for position in missing]) if missing else []
        for position, vector in zip(missing, made, strict=True):
            vectors[position] = vector
            if vector:
                await cache.aput(key=texts[position], val={str(uuid.uuid4()): vector}, collection=_CACHED)
        return [vector or [] for vector in vectors]

    # ---- images, of models that take them

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return (await self._aget_image_embeddings([img_file_path]))[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return self.engine.embed_messages(**self._image_request(img_file_paths)).embeddings

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return (await self.engine.aembed_messages(**self._image_request(img_file_paths))).embeddings

    def _image_request(self, images: Sequence[ImageType]) -> MessageRequest:
        return MessageRequest(
            conversations=[_image_message(image, f"images[{index}]") for index, image in enumerate(images)],
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            extra_body=self.extra_body,
        )

    def _request(self, texts: Sequence[str], input_type: InputType, on_error: OnError = "raise") -> EmbedRequest:
        return EmbedRequest(
            texts=texts,
            input_type=input_type,
            prefix=self.query_instruction if input_type == "query" else self.text_instruction,
            dimensions=self.dimensions,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            lora=self.lora,
            batch_size=min(self.embed_batch_size, TEXTS_IN_A_REQUEST),
            on_error=on_error,
            extra_body=self.extra_body,
        )


def _image_message(image: ImageType, position: str) -> list[dict[str, Any]]:
    """A conversation with only an image in it: a path, a URL, or a stream of its bytes."""
    if isinstance(image, str):
        is_url = image.partition(":")[0].lower() in ("http", "https", "data", "file")
        block = ImageBlock(url=image) if is_url else ImageBlock(path=Path(image))
    else:
        block = ImageBlock(image=image)
    return [{"role": "user", "content": [part.content for part in to_openai_parts(block, position)]}]


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
def _shown(given: _List, total: int, show_progress: bool) -> Iterator[None]:
    """The call is on its way; with a bar, if one is wanted."""
    before = _list.set(given)
    try:
        if not show_progress or not total:
            yield
            return
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, desc="Generating embeddings", unit="text", dynamic_ncols=True) as bar:
            given.on_progress = bar.update
            yield
            bar.update(total - bar.n)  # those that a cache had
    finally:
        _list.reset(before)


def _listed(
    given: _List, texts: Sequence[str], failures: Mapping[int, VLLMError], made: list[Embedding]
) -> PartialList[Embedding]:
    """What the caller gets of the vectors that were made of the texts that were sent."""
    if given.on_error == "raise":
        return PartialList(made, (), range(len(made)))
    left = iter(made)
    vectors = [None if position in failures else next(left) or None for position in range(len(texts))]
    failed = tuple(
        ItemFailure(position, failures.get(position) or given.errors[id(texts[position])])
        for position, vector in enumerate(vectors)
        if vector is None
    )
    indices = [position for position, vector in enumerate(vectors) if vector is not None]
    if given.on_error == "skip":
        vectors = [vector for vector in vectors if vector is not None]
    return PartialList(cast("list[Embedding]", vectors), failed, indices)


def _with_vectors(
    nodes: Sequence[BaseNode], vectors: Sequence[Embedding | None], on_error: OnError
) -> Sequence[BaseNode]:
    for node, vector in zip(nodes, vectors, strict=True):
        node.embedding = vector
    return [node for node in nodes if node.embedding is not None] if on_error == "skip" else nodes


def _in(cached: Mapping[str, Embedding] | None) -> Embedding | None:
    return None if cached is None else next(iter(cached.values()))
