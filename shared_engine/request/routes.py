"""The routes of a vLLM server that requests go to, and what it means if a server has one of them not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared_engine.errors import ModelNotFoundError

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"  # the one of vLLM's three such routes that other servers have too, and that an API key guards

_GENERATES_NO_TEXT = "generates no text: it is one for embeddings, scores or classes"
_WITHOUT = {
    CHAT: _GENERATES_NO_TEXT,
    COMPLETIONS: _GENERATES_NO_TEXT,
    EMBEDDINGS: "makes no embeddings: that takes an embedding model, on an engine with"
    ' engine_args={"runner": "pooling"}',
    RERANK: "does not rerank: that takes a cross-encoder with one label, or an embedding model, on an engine with"
    ' engine_args={"runner": "pooling"}',
}


@contextmanager
def explained_absence(path: str) -> Iterator[None]:
    """That a server lacks the route leaves as an error which says what its model can't do.

    Raises:
        ModelNotFoundError: in place of the same.
    """
    try:
        yield
    except ModelNotFoundError as exc:
        if exc.message != "Not Found":  # FastAPI's words for a route; vLLM names a model that it does not have
            raise
        raise ModelNotFoundError(f"the server has no {path}, so its model {_WITHOUT[path]}", exc.status) from exc
