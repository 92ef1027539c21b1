"""What a server says when it refuses or fails, as our errors: the table of vLLM's words. Pure.

An error of a request is explained in these steps, each of which may replace it by one that says more (``from`` the
one before):

    1. ``client``            no answer: what aiohttp raises becomes ServerUnreachableError, ServerConnectionError,
                             RequestTimeoutError
    2. here                  an answer of 400 or more, or an error in place of an answer: ``error_from_response``
    3. ``sending``           a missing route shows what the model can't do (``explain_missing_route``); a prompt that
                             is too long (``lengths``) gets its exact length where that is quick
    4. ``Endpoint.explain``  local: has the engine died or been stopped, is its queue full, what did a request wait for
                             that timed out; remote: does the server have another model now
    5. ``retry``             tried again where that can help and nothing of an answer has reached the caller
    6. ``pooling``           which of many texts is too long, empty or otherwise at fault (``dividing``), and what to do
                             (``remedy_for_texts``)
    7. the adapters          which image or file (``adapting.media_errors``), and the framework's own classes
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from shared_engine.errors import (
    AuthenticationError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
    ServerError,
)
from shared_engine.request import dialects
from shared_engine.request.lengths import length_error
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS, POOLING, RERANK, RERANK_UNREAD

_BY_STATUS: dict[int, type[RequestError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: ModelNotFoundError,
    429: RateLimitError,
}
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_ENGINE_BUSY = ("currently busy and cannot accept new requests", "prefill token backlog limit")  # vllm/exceptions.py
_ENGINE_FAILED = "EngineCore encountered an issue"  # vllm/v1/engine/exceptions.py
_LOADED_BEFORE = "has already been loaded"  # vllm/entrypoints/openai/models/serving.py
_OF_THE_REQUEST = ("invalid_request", "badrequest", "bad_request", "exceed_context", "context_length", "validation")
# vllm/multimodal/media/connector.py and aiohttp in it: a fault of the address, reported as one of the server's (500).
NOT_LOADED = re.compile(
    r"Cannot load local files|must be a subpath of|must be from one of the allowed domains|Failed to fetch media|"
    r"URL must be either a HTTP, data or file URL|Cannot connect to host|\d{3}, message='[^']*', url='"
)
_NO_ROUTE = "Not Found"  # FastAPI's words; for a model that it does not have, vLLM names it
_NO_BASE64 = ("encoding_format", "base64")  # not vLLM: it has both
# vllm-router and sglang-router read the answer as SGLang's, which is a list, and name another model at /v1/rerank.
_RERANK_MISREAD = "Failed to build rerank response"
_RERANK_RENAMED = "`default`"
# Of text-embeddings-inference, DashScope, OpenAI, and others with OpenAI's protocol.
_TEXTS_AT_ONCE = re.compile(
    r"maximum allowed batch size (\d+)|should not be larger than (\d+)|max(?:imum)? (?:array|batch) (?:size|length) "
    r"(?:is |of )?(\d+)|array.{0,40}maximum length (\d+)",
    re.IGNORECASE,
)
_OTHER_TASK = ("Try switching the model's pooling_task", "Unsupported task")
_NO_EMBEDDINGS = "does not support Embeddings API"
_EMPTY_TEXT = "cannot be empty"
NOTHING_TO_EMBED = "this model has no token of its own to embed"
_NO_NUMBER = ("not JSON compliant", "NaN")  # Python's json without allow_nan, as FastAPI has it; serde's
_NOT_MATRYOSHKA = "does not support Matryoshka"

_GENERATES_NO_TEXT = "generates no text: it is one for embeddings, scores or classes"
_DOES_NOT_RERANK = (
    "does not rerank: that takes a cross-encoder with one label, or an embedding model, on an engine with"
    ' engine_args={"runner": "pooling"}'
)
_WITHOUT = {
    CHAT: _GENERATES_NO_TEXT,
    COMPLETIONS: _GENERATES_NO_TEXT,
    EMBEDDINGS: "makes no embeddings: that takes an embedding model, on an engine with"
    ' engine_args={"runner": "pooling"}',
    POOLING: 'gives nothing for single tokens: that takes an engine with engine_args={"runner": "pooling"}',
    RERANK: _DOES_NOT_RERANK,
    RERANK_UNREAD: _DOES_NOT_RERANK,
}


def error_from_response(status: int, body: bytes, through: str = "") -> RequestError:
    """The error of an answer with ``status`` 400 or more, with the server's words.

    Args:
        through: put after them, such as the proxy that the answer came through.
    """
    return _error(status, _message(body) + through)


def error_in_answer(message: str, code: int | str | None) -> RequestError:
    """The error that came in place of an answer, with HTTP status 200."""
    said = str(code)
    if said.isdigit() and 400 <= int(said) < 600:
        status = int(said)
    else:
        status = 400 if any(mark in said.lower() for mark in _OF_THE_REQUEST) else 500
    return _error(status, message or "the server gave no reason")


def _error(status: int, message: str) -> RequestError:
    if status in _BY_STATUS:
        return _BY_STATUS[status](message, status)
    too_long = length_error(status, message)
    if too_long is not None:
        return too_long
    if status >= 500:
        failed = ServerError(message, status)
        if status == 500 and (NOT_LOADED.search(message) or _has(message, (_RERANK_MISREAD, *_NO_NUMBER))):
            failed.should_retry = False
        return failed
    return RequestRejectedError(message, status)


def explain_missing_route(error: RequestError, path: str) -> RequestError:
    """For a server that lacks the route ``path``: an error that says what its model can't do. For a router that has
    changed what it passed on: one that ``says_rerank_misread``. Else ``error``.
    """
    if path == RERANK and isinstance(error, ModelNotFoundError) and _RERANK_RENAMED in error.message:
        misread = ServerError(f"{_RERANK_MISREAD}: {error.message}", error.status)
        misread.should_retry = False
        return misread
    if isinstance(error, ModelNotFoundError) and error.message == _NO_ROUTE and path in _WITHOUT:
        return ModelNotFoundError(f"the server has no {path}, so its model {_WITHOUT[path]}", error.status)
    if path == EMBEDDINGS and _NO_EMBEDDINGS in error.message:
        return ModelNotFoundError(f"the engine was started for another task, so its model {_WITHOUT[path]}", 501)
    return error


def says_engine_busy(error: RequestError) -> bool:
    """True when vLLM refused to queue the request (``max_num_queued_reqs``, ``max_num_queued_tokens``)."""
    return error.status == 503 and _has(error.message, _ENGINE_BUSY)


def says_engine_failed(error: RequestError) -> bool:
    """True for an error of the server's that is not about what was asked."""
    return error.status is not None and error.status >= 500 and (error.status > 500 or _ENGINE_FAILED in error.message)


def says_loaded_before(error: RequestError) -> bool:
    """True when vLLM has an adapter of the same name already."""
    return error.status == 400 and _LOADED_BEFORE in error.message


def says_no_base64(error: RequestRejectedError) -> bool:
    """True when a server, which then is not vLLM, sends embeddings as JSON's numbers only."""
    return _has(error.message, _NO_BASE64)


def says_rerank_misread(error: ServerError) -> bool:
    """True when a router could not read the server's answer, which has come by then."""
    return _RERANK_MISREAD in error.message


def says_empty(error: RequestError) -> bool:
    """True when a model has no token of its own to embed where a text has none."""
    return _EMPTY_TEXT in error.message


def texts_at_once(error: RequestRejectedError, count: int) -> int | None:
    """How many texts a server takes in one request, which has refused ``count`` for their number or their bytes; None
    where it has refused them for something else.
    """
    found = _TEXTS_AT_ONCE.search(error.message)
    limit = int(next(group for group in found.groups() if group)) if found else 0
    if 0 < limit < count:
        return limit
    return count // 2 if error.status == 413 and count > 1 else None


def says_other_task(error: RequestError) -> bool:
    """True when a pooling model could do what is asked, or can't, but was not started for it."""
    return _has(error.message, _OTHER_TASK)


def says_without_embeddings(error: RequestError) -> bool:
    """True where ``explain_missing_route`` found that a model makes no embeddings, as it was started."""
    return isinstance(error, ModelNotFoundError) and _WITHOUT[EMBEDDINGS] in error.message


def says_no_number(error: RequestError) -> bool:
    """True when a server can't write down what its model has computed: JSON has no NaN."""
    return error.status == 500 and _has(error.message, _NO_NUMBER)


def remedy_for_texts(error: RequestRejectedError, texts: Mapping[int, str]) -> str | None:
    """What to do about a refused request for embeddings, or which text it is about; None where nothing is known.

    Args:
        texts: that were sent, by their positions among the caller's.
    """
    empty = [f"texts[{position}]" for position, text in texts.items() if not text]
    if says_empty(error) and empty:
        return f"empty: {', '.join(empty)}; {NOTHING_TO_EMBED}"
    if _NOT_MATRYOSHKA in error.message:
        return 'if it was trained to, say so: engine_args={"hf_overrides": {"is_matryoshka": True}}'
    return None


def _has(message: str, marks: Sequence[str]) -> bool:
    return any(mark in message for mark in marks)


def _message(body: bytes) -> str:
    """The server's words: in any form of JSON, the title of a page, or the plain text."""
    text = body.decode(errors="replace").strip()
    try:
        said = dialects.said_in(msgspec.json.decode(body))
    except (msgspec.DecodeError, RecursionError):
        title = _TITLE.search(text) if text[:1] == "<" else None
        said = f"{' '.join(title[1].split())} (a page, not an answer of the model's server)" if title else ""
    return said or text[:2000] or "the server gave no reason"
