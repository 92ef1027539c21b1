"""What the LlamaIndex tests share: one deterministic VLLM on tiny_chat, and what LlamaIndex tells of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.memory import ChatMemoryBuffer

from llama_index_vllm_local import VLLM
from tests.llama_index.listeners import RecordSpans
from tests.support.remote_server import RemoteServer, running_server


def plain_memory() -> ChatMemoryBuffer:
    """LlamaIndex's default memory leaves an SQLite connection for the garbage collector to complain about."""
    return ChatMemoryBuffer.from_defaults()


@pytest.fixture
def counter() -> TokenCountingHandler:
    # With words for tokens, a count that is an estimate instead of the engine's own would show.
    return TokenCountingHandler(tokenizer=str.split)


@pytest.fixture
def llm(tiny_chat: dict[str, Any], counter: TokenCountingHandler) -> VLLM:
    return VLLM(**tiny_chat, temperature=0.0, max_tokens=48, callback_manager=CallbackManager([counter]))


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def remote(server: RemoteServer, counter: TokenCountingHandler) -> VLLM:
    return VLLM(base_url=server.url, max_retries=0, callback_manager=CallbackManager([counter]))


class RecordEvents(BaseEventHandler):
    events: list[BaseEvent]

    @classmethod
    def class_name(cls) -> str:
        return "RecordEvents"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    """Every instrumentation event of the test."""
    root, recorder = get_dispatcher(), RecordEvents(events=[])
    root.add_event_handler(recorder)
    yield recorder.events
    root.event_handlers.remove(recorder)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    root, recorder = get_dispatcher(), RecordSpans()
    root.add_span_handler(recorder)
    yield recorder
    root.span_handlers.remove(recorder)
