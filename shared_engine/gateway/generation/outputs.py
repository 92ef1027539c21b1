"""vLLM's answers -> outputs under our own names: those of one prompt in a list, or as events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from shared_engine.errors import ServerError
from shared_engine.gateway.translation import Translation
from shared_engine.request.answers import parse_result
from shared_engine.request.client import split_events
from shared_engine.request.streams import ChunkReader
from shared_engine.results import Choice, GenerationChunk, GenerationResult, TokenUsage

_DONE = b"[DONE]"


def outputs_of(result: GenerationResult) -> list[dict[str, Any]]:
    """One for each choice."""
    return [_output(choice) for choice in result.choices]


def _output(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.text,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "reasoning": choice.reasoning,
        "tool_calls": choice.tool_calls,
        "logprobs": choice.logprobs,
    }


class Outputs(Translation):
    """Of one item of a batch: the list of its outputs."""

    stream_type = "text/event-stream"
    waiting = b""

    def whole(self, body: bytes) -> bytes:
        return msgspec.json.encode(outputs_of(parse_result(body)))

    def piece(self, piece: bytes) -> bytes:
        raise ServerError(f"the server sends a stream where none was asked for: {piece[:80]!r}")

    def end(self) -> bytes:
        return b""


class Generated(Outputs):
    """Of one request: its outputs and usage, or an event for each piece.

    Args:
        model: as the client calls it.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.waiting = f": waiting for {' '.join(model.split())}\n\n".encode()
        self._buffer = bytearray()
        self._reader = ChunkReader()
        self._is_done = False

    def whole(self, body: bytes) -> bytes:
        result = parse_result(body)
        told = {"outputs": outputs_of(result), **self._about(result.usage, result.request_id)}
        return msgspec.json.encode(told)

    def piece(self, piece: bytes) -> bytes:
        self._buffer += piece
        return b"".join(line for event in split_events(self._buffer) for line in self._events(event))

    def _events(self, event: bytes) -> Iterator[bytes]:
        if event == _DONE:
            self._is_done = True
            return
        for chunk in self._reader.chunks(event):
            yield _event(_piece(chunk))

    def end(self) -> bytes:
        told: dict[str, Any] = self._about(None, "")
        found = b""
        for chunk in self._reader.end("the model's server", is_done=self._is_done, needs_done=False):
            if chunk.usage is None:
                found += _event(_piece(chunk))
            else:
                told = self._about(chunk.usage, chunk.request_id)
        return found + _event(told) + b"data: [DONE]\n\n"

    def _about(self, usage: TokenUsage | None, request_id: str) -> dict[str, Any]:
        return {"model": self._model, "usage": usage, "request_id": request_id}


def _piece(chunk: GenerationChunk) -> dict[str, Any]:
    """Without what it does not have."""
    more = {
        "finish_reason": chunk.finish_reason,
        "stop_reason": chunk.stop_reason,
        "reasoning": chunk.reasoning,
        "tool_calls": chunk.tool_calls or None,
        "logprobs": chunk.logprobs,
    }
    return {"index": chunk.index, "text": chunk.text, **{name: each for name, each in more.items() if each is not None}}


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(told) + b"\n\n"
