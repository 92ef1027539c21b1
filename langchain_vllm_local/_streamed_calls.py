"""Tool calls of a stream whose arguments never became whole: LangChain must not take them for calls that can be made.

Core repairs the arguments of added-up chunks (``parse_partial_json``), so a call that max_tokens cut off would come out
valid, with a number that lacks its last digits. Works on the engine's chunks.
"""

from __future__ import annotations

import json

from langchain_core.utils.json import parse_partial_json
from msgspec.structs import replace

from shared_engine.results import GenerationChunk, ToolCallDelta

# One of these closes what is not open, in a string, behind a backslash, or between values: core does not repair that.
_ENDS = ("]", '"]', '\\"]', "}", '"}', '\\"}')


class StreamedCalls:
    """The tool calls of one stream."""

    def __init__(self) -> None:
        self._arguments: dict[int, str] = {}

    def checked(self, chunk: GenerationChunk) -> GenerationChunk:
        """The chunk; the one that ends the stream makes calls invalid whose arguments are not a JSON object."""
        for call in chunk.tool_calls:
            self._arguments[call.index] = self._arguments.get(call.index, "") + (call.arguments or "")
        if chunk.finish_reason is None or not self._arguments:
            return chunk
        is_cut_off = chunk.finish_reason == "length"
        ends = (
            ToolCallDelta(index=index, arguments=_end_that_stays_invalid(arguments))
            for index, arguments in self._arguments.items()
            if (arguments or is_cut_off) and not _is_json(arguments)
        )
        return replace(chunk, tool_calls=(*chunk.tool_calls, *ends))


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)  # as for a whole answer
    except json.JSONDecodeError:
        return False
    return True


def _end_that_stays_invalid(arguments: str) -> str:
    return next((end for end in _ENDS if not _would_be_repaired(arguments + end)), "")


def _would_be_repaired(arguments: str) -> bool:
    try:
        return isinstance(parse_partial_json(arguments), dict)
    except json.JSONDecodeError:
        return False
