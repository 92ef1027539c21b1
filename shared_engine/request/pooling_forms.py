"""What else a pooling engine gives for texts: vectors of each token, sparse vectors, vectors of images and messages."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from shared_engine.errors import RequestRejectedError, ServerError, SettingsError
from shared_engine.request.answers import parse_embeddings, parse_tokenwise
from shared_engine.request.bodies import Request, embedding_request, message_embedding_request, token_request
from shared_engine.request.call import Call
from shared_engine.request.refusals import says_other_task
from shared_engine.request.sending import Requests
from shared_engine.results import Embedded

NOT_FINITE = "NaN or infinite numbers"
ZEROS = "only zeros"
EMBED_TOKENS, CLASSIFY_TOKENS = "token_embed", "token_classify"

Options = Mapping[str, Any]


def fault_of(vector: Sequence[float]) -> str | None:
    """What keeps a vector from being compared with others."""
    fault = _fault_of_numbers(vector)
    return fault if fault or any(vector) else ZEROS


def _fault_of_numbers(vector: Sequence[float]) -> str | None:
    if not vector:
        return "no numbers"
    # Of 32-bit numbers no sum is infinite that has no infinite number in it.
    return None if math.isfinite(sum(vector)) or all(map(math.isfinite, vector)) else NOT_FINITE


def _fault_of_tokens(vectors: Sequence[Sequence[float]]) -> str | None:
    return next((fault for fault in map(_fault_of_numbers, vectors) if fault), None)


class Form(NamedTuple):
    """A form of what is asked for.

    Attributes:
        ask: what has come of some items, in one request. Raises VLLMError.
        fault: what is wrong with what has come of one of them.
        is_single: an item goes into a request of its own.
        kind: what items are called in errors.
    """

    ask: Callable[[Requests, Sequence[Any], Options, Call], Awaitable[Embedded[Any]]]
    fault: Callable[[Any], str | None]
    is_single: bool = False
    kind: str = "texts"


def _asking(task: str) -> Callable[[Requests, Sequence[Any], Options, Call], Awaitable[Embedded[Any]]]:
    async def ask(requests: Requests, texts: Sequence[str], options: Options, call: Call) -> Embedded[Any]:
        return await _tokenwise(requests, token_request(texts, task, options), task, len(texts), call)

    return ask


async def _tokenwise(requests: Requests, request: Request, task: str, count: int, call: Call) -> Embedded[Any]:
    try:
        result = await requests.ask(request, parse_tokenwise, call)
    except RequestRejectedError as exc:
        if says_other_task(exc):
            remedy = f'engine_args={{"pooler_config": {{"task": "{task}"}}}}, if the model can do it'
            raise SettingsError(f"the engine was started for another task: {remedy} ({exc.message})") from exc
        raise
    if len(result.embeddings) != count:
        raise ServerError(f"the server sent something for {len(result.embeddings)} texts instead of {count}")
    return result


async def _of_texts(requests: Requests, texts: Sequence[Any], options: Options, call: Call) -> Embedded[Any]:
    result = await requests.ask(embedding_request(texts, "base64", options), parse_embeddings, call)
    if len(result.embeddings) != len(texts):
        raise ServerError(f"the server sent {len(result.embeddings)} embeddings for {len(texts)} texts")
    return result


async def _of_messages(requests: Requests, conversations: Sequence[Any], options: Options, call: Call) -> Embedded[Any]:
    (messages,) = conversations
    return await requests.ask(message_embedding_request(messages, options), parse_embeddings, call)


TOKENS = Form(_asking(EMBED_TOKENS), _fault_of_tokens)
WEIGHTS = Form(_asking(CLASSIFY_TOKENS), lambda weights: _fault_of_tokens(weights) if weights else None)
VOCABULARY = Form(_of_texts, _fault_of_numbers)
MESSAGES = Form(_of_messages, fault_of, is_single=True, kind="conversations")


def sparse_of(vector: Sequence[float]) -> dict[int, float]:
    """A vector with a number for each token of the vocabulary, without those that are 0.

    Raises:
        SettingsError: it is dense.
    """
    if any(number < 0 for number in vector):
        raise SettingsError("the model's vectors are dense: sparse ones take a model such as SPLADE or BGE-M3")
    return {token: number for token, number in enumerate(vector) if number}


def weights_by_token(weights: Sequence[Sequence[float]], tokens: Sequence[int], *, is_cut: bool) -> dict[int, float]:
    """The highest weight of each token of a text, without those that are 0.

    Args:
        weights: of each token but the special ones.
        is_cut: there may be more tokens than weights.

    Raises:
        ServerError: there are other tokens than weights.
    """
    if len(weights) != len(tokens) and not (is_cut and len(weights) < len(tokens)):
        raise ServerError(f"the server sent {len(weights)} weights for {len(tokens)} tokens")
    found: dict[int, float] = {}
    for token, (weight, *_) in zip(tokens, weights, strict=False):
        if weight > found.get(token, 0.0):
            found[token] = weight
    return found
