"""The events of one streamed answer -> chunks; and whether they are all of it. Pure.

An answer is whole when each choice that began has its finish reason. Of an engine of ours ``[DONE]`` must follow, which
vLLM sends after the usage; other servers leave it out, and end the HTTP message properly instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from shared_engine.errors import ServerConnectionError
from shared_engine.request.additional_fields import Fields, merged, of_event
from shared_engine.request.answers import (
    NOT_FINISHED,
    AnyAnswer,
    AnyChoice,
    ToolPiece,
    Usage,
    decode_answer,
    new_call_id,
    stopped,
    usage_of,
    without_false_zero,
)
from shared_engine.request.dialects import ends_calls_silently, reason_of, without_half_pairs
from shared_engine.results import GenerationChunk, ToolCallDelta


class ChunkReader:
    """The chunks of one streamed answer, event by event; at its end the usage, if the answer is whole.

    Args:
        keeps_raw: the events themselves go with the chunks.
    """

    def __init__(self, *, keeps_raw: bool = False) -> None:
        self._raw: list[Any] | None = [] if keeps_raw else None
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._has_reasoning = False
        self._calls: dict[int, _Calls] = {}
        self._usage: Usage | None = None
        self._head: tuple[str, str] = ("", "")
        self._part = b""
        self._last_event = b"null"
        self._more: Fields = {}
        self._more_of_choices: dict[int, Fields] = {}

    def chunks(self, event: bytes) -> Iterator[GenerationChunk]:
        """Those of one ``data:`` line; none of a keep-alive, or one that says nothing.

        Raises:
            RequestError: it is an error in an answer's place, or the server's end cut the answer off.
        """
        answer = self._answer(event)
        if answer is None:
            return
        usage = answer.usage
        if usage is not None and (self._usage is None or usage.prompt_tokens or usage.completion_tokens):
            # Of all that come the last one counts: some servers send it in every chunk.
            self._usage, self._head = usage, (answer.id, answer.model)
        elif self._usage is None:
            self._head = (answer.id, answer.model)
        for choice in answer.choices:
            self._begun.add(choice.index)
            if choice.finish_reason:
                if choice.finish_reason in NOT_FINISHED:
                    raise stopped(choice.finish_reason, event)
                if choice.index in self._finished:  # said again, which frameworks would add up: "stopstop"
                    choice.finish_reason = choice.stop_reason = None
                self._finished.add(choice.index)
            chunk = self._chunk(choice, answer)
            self._has_reasoning = self._has_reasoning or bool(chunk.reasoning)
            if not chunk.is_empty:
                yield self._with_raw(chunk)

    def end(self, where: str, *, is_done: bool, needs_done: bool) -> Iterator[GenerationChunk]:
        """The last chunks, when the stream has ended: the usage, where the server sent it.

        Args:
            where: the server, as errors name it.
            is_done: ``[DONE]`` has come.
            needs_done: without it the stream was cut off.

        Raises:
            ServerConnectionError: the answer is not whole.
        """
        if self._has_calls_without_an_end(is_done):
            unfinished = self._begun - self._finished
            yield from (GenerationChunk(index=index, finish_reason="tool_calls") for index in sorted(unfinished))
            self._finished |= unfinished
        missing = self._missing()
        if missing is None and needs_done and not is_done:
            missing = "[DONE] did not come"
        if missing is not None:
            raise ServerConnectionError(f"{where} ended the answer before it was whole: {missing}")
        for fields in self._more_of_choices.values():  # that came after the end of their choice
            self._more = merged(self._more, fields)
        usage = usage_of(self._usage)
        if usage is not None:
            usage = without_false_zero(usage) if self._has_reasoning else usage
        if usage is not None or self._more or self._raw:
            request_id, model = self._head
            last = GenerationChunk(usage=usage, request_id=request_id, model=model)
            yield self._with_raw(replace(last, additional_fields=self._more or None))

    def _with_raw(self, chunk: GenerationChunk) -> GenerationChunk:
        if self._raw is None:
            return chunk
        events, self._raw = self._raw, []
        return replace(chunk, raw=events)

    def _missing(self) -> str | None:
        if self._part:
            return f"the last event ends in the middle: {self._part[:80]!r}"
        if not self._begun:
            return "nothing of an answer came"
        unfinished = sorted(self._begun - self._finished)
        return f"choice {unfinished[0]} has no finish_reason" if unfinished else None

    def _has_calls_without_an_end(self, is_done: bool) -> bool:
        """See ``dialects.ends_calls_silently``."""
        calls = [self._calls.get(index) for index in self._begun - self._finished]
        are_whole = bool(calls) and all(each is not None and each.are_whole for each in calls)
        return is_done and are_whole and ends_calls_silently(msgspec.json.decode(self._last_event))

    def _answer(self, event: bytes) -> AnyAnswer | None:
        """None where ``event`` is only the beginning of one: several ``data:`` lines may be one event."""
        data = self._part + b"\n" + event if self._part else event
        if not data:
            return None
        data = without_half_pairs(data)
        try:
            answer = decode_answer(data)
        except ServerConnectionError:
            self._part = data
            return None
        self._part = b""
        self._keep_additional(answer, data)
        if self._raw is not None:
            self._raw.append(msgspec.json.decode(data))
        if answer.choices:
            self._last_event = data
        return answer

    def _keep_additional(self, answer: AnyAnswer, data: bytes) -> None:
        beside, of_choices = of_event(data, len(answer.choices))
        if beside:
            self._more = merged(self._more, beside)
        for choice, fields in zip(answer.choices, of_choices, strict=True):
            if fields:
                self._more_of_choices[choice.index] = merged(self._more_of_choices.get(choice.index, {}), fields)

    def _chunk(self, choice: AnyChoice, answer: AnyAnswer) -> GenerationChunk:
        said = choice.said
        return GenerationChunk(
            text=said.content or "",
            index=choice.index,
            finish_reason=reason_of(choice.finish_reason) if choice.finish_reason else None,
            stop_reason=choice.stop_reason,
            tool_calls=self._deltas(choice.index, said.tool_calls) if said.tool_calls else (),
            reasoning=said.thought,
            logprobs=choice.logprobs,
            additional_fields=self._more_of_choices.pop(choice.index, None) if choice.finish_reason else None,
            request_id=answer.id,
            model=answer.model,
        )

    def _deltas(self, index: int, pieces: list[ToolPiece]) -> tuple[ToolCallDelta, ...]:
        calls = self._calls.setdefault(index, _Calls())
        return tuple(delta for piece in pieces for delta in calls.deltas(piece))


class _Call:
    """One tool call, as far as it came."""

    def __init__(self, index: int, id: str, name: str | None) -> None:
        self.index = index
        self.id = id
        self.name = name or ""
        self.arguments = ""
        self.successor: tuple[str, str | None] | None = None

    @property
    def is_whole(self) -> bool:
        try:
            return isinstance(msgspec.json.decode(self.arguments), dict)
        except (msgspec.DecodeError, RecursionError):
            return False


class _Calls:
    """The tool calls of one choice, from pieces that may lack their index and their id, or repeat another call's index.

    Each call is given one index, one id, and its name once, which is what the frameworks add up.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    @property
    def are_whole(self) -> bool:
        return bool(self._calls) and all(call.is_whole for call in self._calls)

    def deltas(self, piece: ToolPiece) -> Iterator[ToolCallDelta]:
        name, arguments = piece.function.name, piece.function.arguments
        call = self._call_of(piece)
        if call is not None and piece.id and piece.id != call.id and name and call.is_whole:
            # Another call under the index of this one; unless nothing follows: vLLM before 0.9 sent name and a new id
            # with each piece of a call.
            call.successor = (piece.id, name)
        if call is not None and call.successor is not None and arguments:
            call = self._new(piece.index, *call.successor)
            yield ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=arguments)
        elif call is None:
            call = self._new(piece.index, piece.id, name)
            yield ToolCallDelta(index=call.index, id=call.id, name=name, arguments=arguments)
        else:
            is_new_name = bool(name) and not call.arguments and name != call.name
            call.name += (name or "") if is_new_name else ""
            if arguments or is_new_name:
                yield ToolCallDelta(index=call.index, name=name if is_new_name else None, arguments=arguments)
        call.arguments += arguments or ""

    def _call_of(self, piece: ToolPiece) -> _Call | None:
        """The call that ``piece`` goes on with; None where it begins one."""
        if piece.index is not None:
            return self._by_index.get(piece.index)
        if piece.id:
            return next((call for call in self._calls if call.id == piece.id), None)
        last = self._calls[-1] if self._calls else None
        goes_on = last is not None and (
            not piece.function.name or (piece.function.name == last.name and not last.is_whole)
        )
        return last if goes_on else None

    def _new(self, index: int | None, id: str | None, name: str | None) -> _Call:
        taken = [call.index for call in self._calls]
        own = index if index is not None and index not in taken else max(taken, default=-1) + 1
        call = _Call(own, id or new_call_id(), name)
        self._calls.append(call)
        self._by_index[own if index is None else index] = call
        return call
