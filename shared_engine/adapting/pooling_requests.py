"""The keywords of ``Engine.embed`` and ``Engine.rerank``, and of their asynchronous twins, as adapters pass them; and
lists that say what is missing in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypedDict, TypeVar

from shared_engine.answer_file.vectors import VectorFile
from shared_engine.model_files.pooling_recipes import with_sparse_vectors
from shared_engine.request.pooling import DEFAULT_BATCH_SIZE
from shared_engine.results import ItemFailure, OnError

__all__ = [
    "TEXTS_IN_A_REQUEST",
    "EmbedRequest",
    "InputType",
    "MessageRequest",
    "PartialList",
    "RerankRequest",
    "SparseRequest",
    "VectorFile",
    "list_of",
    "with_sparse_vectors",
]

T = TypeVar("T")

InputType = Literal["query", "document"]

TEXTS_IN_A_REQUEST: Final = DEFAULT_BATCH_SIZE
"""How many texts go into one request unless the user says otherwise."""


class EmbedRequest(TypedDict):
    """See ``Engine.aembed``."""

    texts: Sequence[str]
    input_type: InputType
    prefix: str | None
    dimensions: int | None
    truncate_prompt_tokens: int | None
    lora: str | None
    batch_size: int
    on_error: OnError
    extra_body: dict[str, Any] | None


class SparseRequest(TypedDict):
    """See ``Engine.aembed_sparse``."""

    texts: Sequence[str]
    truncate_prompt_tokens: int | None
    lora: str | None
    batch_size: int
    on_error: OnError
    extra_body: dict[str, Any] | None


class MessageRequest(TypedDict):
    """See ``Engine.aembed_messages``."""

    conversations: Sequence[Sequence[Mapping[str, Any]]]
    dimensions: int | None
    truncate_prompt_tokens: int | None
    lora: str | None
    extra_body: dict[str, Any] | None


class RerankRequest(TypedDict):
    """See ``Engine.arerank``."""

    query: str
    documents: list[str]
    top_n: int | None
    truncate_prompt_tokens: int | None
    lora: str | None
    on_error: OnError
    extra_body: dict[str, Any] | None


class PartialList(list[T]):
    """What came of many texts or documents of which some may have failed.

    Attributes:
        failures: those that failed, in order: their positions, and why.
        indices: the positions of the others, in the order of this list.
    """

    def __init__(self, items: Iterable[T], failures: Sequence[ItemFailure], indices: Sequence[int]) -> None:
        super().__init__(items)
        self.failures, self.indices = tuple(failures), list(indices)


def list_of(file: VectorFile, on_error: OnError) -> PartialList[list[float]]:
    """The vectors of a file, all of them in memory."""
    vectors = [vector for vector in file if vector is not None or on_error != "skip"]
    return PartialList(vectors, file.failures, file.indices)
