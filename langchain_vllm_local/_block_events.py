"""The engine's chunks -> the events of LangChain's content-block protocol (``stream_events(version="v3")``). Pure.

Core can make events of the chunks of ``_stream`` too (``_compat_bridge``). But then all log probabilities but those of
the last chunk are lost, no block is finished before the whole answer is, and each chunk costs the app more time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, BaseRunManager
from langchain_core.utils.utils import LC_ID_PREFIX

from langchain_vllm_local._answers import chunk_metadata, to_usage_metadata
from langchain_vllm_local._engine_model import PROVIDER
from langchain_vllm_local._tools import to_tool_calls
from shared_engine.results import GenerationChunk, TokenUsage, ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from langchain_protocol.protocol import MessagesData


Run = TypeVar("Run", bound=BaseRunManager)

_STREAMING_BY_EVENTS: tuple[type, ...] = ()
with contextlib.suppress(ImportError):  # a private class: without it, chunks are made that nobody needs
    from langchain_core.tracers._streaming import _V2StreamingCallbackHandler

    _STREAMING_BY_EVENTS = (_V2StreamingCallbackHandler,)


def message_id(run_manager: BaseRunManager | None) -> str:
    """Of the message that a stream becomes, as core names it; empty outside of a run."""
    return "" if run_manager is None else f"{LC_ID_PREFIX}-{run_manager.run_id}"


def listening_to_chunks(run_manager: Run | None) -> Run | None:
    """The run, if a callback of it wants to hear of chunks, as tracers do: they are made for it only. What streams by
    events has no use for them, as its class says.
    """
    handlers = () if run_manager is None else run_manager.handlers
    return run_manager if any(_hears_of_chunks(handler) for handler in handlers) else None


def _hears_of_chunks(handler: BaseCallbackHandler) -> bool:
    ignoring = (BaseCallbackHandler.on_llm_new_token, AsyncCallbackHandler.on_llm_new_token)
    return type(handler).on_llm_new_token not in ignoring and not isinstance(handler, _STREAMING_BY_EVENTS)


class AnswerEvents:
    """The events of one answer: those ``of`` each chunk, then those of the ``end``.

    A block of text or thought is finished by the first piece of another kind. Tool calls, whose pieces may take turns,
    are finished with the answer: only then is it known whether they can be made.

    Args:
        message_id: of the message that the stream becomes.
    """

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._blocks = 0
        self._kind = ""  # of the open block
        self._pieces: list[str] = []  # of the open block
        self._thought: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._call_blocks: dict[int, int] = {}
        self._metadata: dict[str, Any] = {}
        self._usage: TokenUsage | None = None

    def of(self, chunk: GenerationChunk) -> Iterator[MessagesData]:
        if not self._metadata:
            yield self._start(chunk)
        if chunk.reasoning:
            self._thought.append(chunk.reasoning)
            yield from self._piece("reasoning", chunk.reasoning)
        if chunk.text:
            yield from self._piece("text", chunk.text)
        for delta in chunk.tool_calls:
            yield from self._piece_of_call(delta)
        if chunk.finish_reason or chunk.logprobs or chunk.additional_fields or chunk.raw:
            logprobs = {} if chunk.logprobs is None else {"logprobs": chunk.logprobs}
            _add_up(self._metadata, chunk_metadata(chunk) | logprobs)
        self._usage = chunk.usage or self._usage

    def end(self) -> Iterator[MessagesData]:
        if not self._metadata:  # nothing has come
            return
        yield from self._finished()
        for index, call in self._calls.items():
            yield from self._finished_call(self._call_blocks[index], call)
        finish: dict[str, Any] = {"event": "message-finish", "metadata": self._metadata}
        if self._usage is not None:
            finish["usage"] = to_usage_metadata(self._usage)
        if self._thought:
            finish["additional_kwargs"] = {"reasoning_content": "".join(self._thought)}
        yield _event(finish)

    def _start(self, chunk: GenerationChunk) -> MessagesData:
        self._metadata["model_provider"] = PROVIDER
        metadata = {"provider": PROVIDER, **({"model": chunk.model} if chunk.model else {})}
        return _event({"event": "message-start", "role": "ai", "id": self._message_id, "metadata": metadata})

    # ---- text and thought

    def _piece(self, kind: str, piece: str) -> Iterator[MessagesData]:
        if kind != self._kind:
            yield from self._finished()
            self._kind = kind
            yield self._begun({"type": kind, kind: ""})
        self._pieces.append(piece)
        yield _delta(self._blocks - 1, {"type": f"{kind}-delta", kind: piece})

    def _finished(self) -> Iterator[MessagesData]:
        """The end of the open block, if there is one."""
        if self._kind:
            yield _finish(self._blocks - 1, {"type": self._kind, self._kind: "".join(self._pieces)})
        self._kind, self._pieces = "", []

    def _begun(self, content: dict[str, Any]) -> MessagesData:
        self._blocks += 1
        return _event({"event": "content-block-start", "index": self._blocks - 1, "content": content})

    # ---- tool calls

    def _piece_of_call(self, delta: ToolCallDelta) -> Iterator[MessagesData]:
        call = self._calls.get(delta.index, ToolCall()).extended(delta)
        if delta.index not in self._calls:
            yield from self._finished()
            start = {"type": "tool_call_chunk", "id": call.id, "name": call.name, "args": "", "index": delta.index}
            yield self._begun(start)
            self._call_blocks[delta.index] = self._blocks - 1
        self._calls[delta.index] = call
        if delta.arguments:
            yield _delta(self._call_blocks[delta.index], {"type": "tool-call-delta", "args": delta.arguments})

    def _finished_call(self, block: int, call: ToolCall) -> Iterator[MessagesData]:
        """The call; of one that can't be made also what stands for it, in a block of its own (``to_tool_calls``)."""
        valid, invalid = to_tool_calls([call], self._metadata.get("finish_reason"))
        if not invalid:
            yield _finish(block, dict(valid[0]))
            return
        yield _finish(block, dict(invalid[0]))
        for stand_in in valid:
            yield self._begun({**stand_in, "args": {}})
            yield _finish(self._blocks - 1, dict(stand_in))


def _delta(block: int, delta: dict[str, Any]) -> MessagesData:
    return _event({"event": "content-block-delta", "index": block, "delta": delta})


def _finish(block: int, content: dict[str, Any]) -> MessagesData:
    return _event({"event": "content-block-finish", "index": block, "content": content})


def _event(event: dict[str, Any]) -> MessagesData:
    return cast("MessagesData", event)


def _add_up(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """``part`` into ``whole``: lists go on, dicts are added up, other values replace."""
    for name, value in part.items():
        if isinstance(value, list):
            whole[name] = before = whole.get(name) or []
            before.extend(value)
        elif isinstance(value, dict):
            whole[name] = before = whole.get(name) or {}
            _add_up(before, value)
        elif value is not None or name not in whole:
            whole[name] = value
