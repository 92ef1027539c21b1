"""What the tests of VLLMEmbedding and VLLMRerank share: answers of a server, and listeners of LlamaIndex's events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler

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


class RecordCallbacks(BaseCallbackHandler):
    """What LlamaIndex's older kind of listener is told: (start or end, type, payload)."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.told: list[tuple[str, CBEventType, dict[str, Any]]] = []

    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", *_: Any, **__: Any
    ) -> str:
        self.told.append(("start", event_type, payload))
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: Any = None, *_: Any, **__: Any) -> None:
        self.told.append(("end", event_type, payload))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


@contextmanager
def recorded_spans() -> Iterator[SimpleSpanHandler]:
    """LlamaIndex's spans, once they are closed."""
    root, handler = get_dispatcher(), SimpleSpanHandler()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


def closed(spans: SimpleSpanHandler, name: str) -> int:
    """How many spans of a method there were."""
    return sum(f".{name}-" in span.id_ for span in spans.completed_spans)
