"""A server of embeddings and scores that refuses all of a request for one of its texts, in the words of vLLM."""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from tests.support.remote_server import RemoteServer

LIMIT = 10
TOO_LONG = (
    f"This model's maximum context length is {LIMIT} tokens. However, your prompt contains at least {LIMIT + 1} input "
    "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)
LONG = "long " * 20
"""22 tokens."""
EMPTY = "The decoder prompt cannot be empty"
NOT_JSON = "Out of range float values are not JSON compliant: nan"
NAN = "makes nan"
ZERO = "makes zeros"
REFUSED = "refused"

Refusal = tuple[int, str]
Refuses = Callable[[str], Refusal | None]


def vllms(text: str) -> Refusal | None:
    """What vLLM refuses of a text."""
    if len(text.split()) + 2 > LIMIT:
        return 400, TOO_LONG
    if not text:
        return 400, EMPTY
    return (400, "this text is not taken") if text == REFUSED else None


def vector_of(text: str) -> list[float]:
    if text == ZERO:
        return [0.0, 0.0]
    return [math.nan if text == NAN else float(len(text)), 0.5]


def is_choosy(server: RemoteServer, refuses: Refuses = vllms, *, form: str = "base64") -> list[Sequence[str]]:
    """Answer so from now on; returns the texts or documents of each request that comes.

    Args:
        form: of vectors and scores: ``base64``, or numbers, in which NaN is ``null``, ``NaN``, or an ``error``.
    """
    asked: list[Sequence[str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts = body["documents"] if "documents" in body else body["input"]
        asked.append(texts)
        for text in (*texts, body.get("query", "a")):
            refusal = refuses(text)
            if refusal is not None:
                return refused(*refusal)
        if form == "error" and NAN in texts:
            return refused(500, NOT_JSON)
        numbers = [vector_of(text) for text in texts]
        if "documents" in body:
            listed = [{"index": index, "relevance_score": number[0]} for index, number in enumerate(numbers)]
            listed = sorted(listed, key=lambda each: -each["relevance_score"])[: body.get("top_n")]
            return said({"model": "served", "results": listed}, form)
        vectors = [array("f", number).tobytes() for number in numbers]
        written: list[Any] = [base64.b64encode(each).decode() for each in vectors] if form == "base64" else numbers
        data = [{"index": index, "embedding": each} for index, each in enumerate(written)]
        return said({"model": "served", "data": data, "usage": {"prompt_tokens": len(texts)}}, form)

    server.handler = handler
    return asked


def refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def said(content: dict[str, Any], form: str) -> web.Response:
    text = json.dumps(content)
    return web.Response(text=text if form == "NaN" else text.replace("NaN", "null"), content_type="application/json")
