"""A server of embeddings and scores, whose vectors can be foreseen; and what was sent to it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tests.support.remote_server import RemoteServer


async def embeds_and_reranks(request: web.Request) -> web.StreamResponse:
    """The vector of a text, and a document's score, tell how long it is."""
    body = await request.json()
    if "documents" not in body:
        vectors = [{"index": index, "embedding": vector_of(text)} for index, text in enumerate(body["input"])]
        return web.json_response({"data": vectors})
    scores = [{"index": index, "relevance_score": len(text) / 100} for index, text in enumerate(body["documents"])]
    return web.json_response({"results": scores})


def vector_of(text: str) -> list[float]:
    return [float(len(text)), 8.0]


def answers(server: RemoteServer, content: dict[str, Any], status: int = 200) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(content, status=status)

    server.handler = handler


def bodies(server: RemoteServer) -> list[dict[str, Any]]:
    """What was sent since the last look, without what is always in it."""
    always = ("model", "encoding_format")
    sent = [{name: value for name, value in body.items() if name not in always} for _, body in server.requests]
    server.requests.clear()
    return sent
