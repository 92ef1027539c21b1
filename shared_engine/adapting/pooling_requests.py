"""The keywords of ``Engine.embed`` and ``Engine.rerank``, and of their asynchronous twins, as adapters pass them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypedDict

from shared_engine.request.pooling import DEFAULT_BATCH_SIZE

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
    extra_body: dict[str, Any] | None


class RerankRequest(TypedDict):
    """See ``Engine.arerank``."""

    query: str
    documents: list[str]
    top_n: int | None
    truncate_prompt_tokens: int | None
    lora: str | None
    extra_body: dict[str, Any] | None
