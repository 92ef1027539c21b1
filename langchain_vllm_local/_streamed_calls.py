"""Tool calls of a stream whose arguments never became whole: LangChain must not take them for calls that can be made.

Core repairs the arguments of added-up chunks (``parse_partial_json``), so a call that max_tokens cut off would come out
valid, with a number that lacks its last digits. Works on the engine's chunks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterable

from langchain_core.utils.json import parse_partial_json
from msgspec.structs import replace

from shared_engine.adapting.structured import CUT_OFF
from shared_engine.adapting.tools import arguments_of, stand_in
from shared_engine.results import GenerationChunk, ToolCall, ToolCallDelta

# One of these closes what is not open, in a string, behind a backslash, or between values: core does not repair that.
_ENDS = ("]", '"]', '\\"]', "}", '"}', '\\"}')


class StreamedCalls:
    """The tool calls of one stream."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    @property
    def made(self) -> Container[int]:
        """Indexes of the calls that the model has made so far."""
        return self._calls.keys()

    def checked(self, chunk: GenerationChunk) -> GenerationChunk:
        """The chunk; the one that ends the stream makes calls invalid whose arguments are not a JSON object, and adds
        what stands for them unless they were cut off, as ``to_tool_calls`` does.
        """
        for delta in chunk.tool_calls:
            self._calls[delta.index] = self._calls.get(delta.index, ToolCall()).extended(delta)
        if chunk.finish_reason is None or not self._calls:
            return chunk
        return replace(chunk, tool_calls=(*chunk.tool_calls, *self._ends(chunk.finish_reason in CUT_OFF)))

    def _ends(self, is_cut_off: bool) -> Iterable[ToolCallDelta]:
        free = max(self._calls) + 1
        for index, call in self._calls.items():
            if _core_reads(call.arguments) and (call.arguments or not is_cut_off):
                continue
            yield ToolCallDelta(index=index, arguments=_end_that_stays_invalid(call.arguments))
            if not is_cut_off:
                yield ToolCallDelta(index=free, id=call.id, name=_name_for_agents(call), arguments="{}")
                free += 1


def _core_reads(arguments: str) -> bool:
    """Whether core takes them as they are: as a JSON object, or as none."""
    try:
        return isinstance(json.loads(arguments or "{}", strict=False), dict)  # as for a whole answer
    except json.JSONDecodeError:
        return False


def _name_for_agents(call: ToolCall) -> str:
    try:
        arguments_of(call.arguments)
    except ValueError:
        return stand_in(call.name)
    return call.name  # ``null``, of which core makes an invalid call


def _end_that_stays_invalid(arguments: str) -> str:
    return next((end for end in _ENDS if _stays_invalid(arguments + end)), "")


def _stays_invalid(arguments: str) -> bool:
    """Whether core makes an invalid call of it. Of JSON that is no object its newer streams make a call, and fail."""
    with contextlib.suppress(json.JSONDecodeError):
        json.loads(arguments)
        return False
    with contextlib.suppress(json.JSONDecodeError):
        return not isinstance(parse_partial_json(arguments), dict)
    return True
