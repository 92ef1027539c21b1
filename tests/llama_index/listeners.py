"""Listeners of LlamaIndex's events, for the tests of VLLMEmbedding and VLLMRerank."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from pydantic import Field


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


class RecordSpans(SimpleSpanHandler):
    arguments: list[dict[str, Any]] = Field(default_factory=list)

    def new_span(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        self.arguments.append(dict(bound_args.arguments))
        return super().new_span(id_, bound_args, *args, **kwargs)

    def names(self) -> list[str]:
        return sorted(span.id_.rpartition("-")[0].split("-")[0] for span in self.completed_spans)
