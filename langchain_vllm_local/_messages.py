"""LangChain's messages -> OpenAI's, as the engine takes them. Pure (but see _blocks).

Nothing of the caller's is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_vllm_local._blocks import names_file, to_openai_part
from langchain_vllm_local._tools import openai_tool_call
from shared_engine.adapting.media_errors import Wording
from shared_engine.adapting.other_blocks import block_as_text
from shared_engine.adapting.tools import is_stand_in, sent_arguments, without_stand_in
from shared_engine.errors import InvalidInputError

# Blocks of an answer that the message carries a second time, as tool_calls.
_TOOL_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")
_REASONING_BLOCKS = ("reasoning", "thinking")

WORDING = Wording(
    position=lambda message, part: f"messages[{message}].content[{part}]",
    local_file=lambda kind: f"{{'type': {kind!r}, 'path': ...}}",
)
"""What errors about a conversation call its blocks."""


def to_openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form. The caller's messages stay as they are.

    A block that can't be sent is an error where it is asked about: in system messages, and in what the user says after
    the last answer. Elsewhere, in results of tools and in earlier turns, text takes its place that says what it was:
    the conversation would be at its end.

    Raises:
        InvalidInputError: naming the message, or the block in it, that can't be sent.
    """
    answers = [index for index, message in enumerate(messages) if isinstance(message, AIMessage)]
    turn = answers[-1] + 1 if answers else 0
    return [
        _to_openai_message(message, f"messages[{index}]", is_asked=_is_asked(message, index >= turn))
        for index, message in enumerate(messages)
    ]


def _is_asked(message: BaseMessage, is_of_turn: bool) -> bool:
    if isinstance(message, (AIMessage, ToolMessage, FunctionMessage)):
        return False
    return is_of_turn or isinstance(message, SystemMessage)


def name_files(messages: Sequence[BaseMessage]) -> bool:
    """Whether to convert them is to read local files, for which an event loop should not have to wait."""
    return any(
        names_file(block)
        for message in messages
        if isinstance(message, HumanMessage) and isinstance(message.content, list)
        for block in message.content
    )


def _to_openai_message(message: BaseMessage, position: str, *, is_asked: bool) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": _role(message, position), "content": _content(message, position, is_asked)}
    if message.name is not None:
        sent["name"] = without_stand_in(message.name)
    if isinstance(message, ToolMessage):
        sent["tool_call_id"] = message.tool_call_id
        if message.status == "error" and not sent["content"]:
            sent["content"] = "Error"  # chat templates know no status: with no text it would read as a success
    if isinstance(message, AIMessage):
        sent.update(_answer_fields(message, position))
        if "tool_calls" in sent and not sent["content"]:
            sent["content"] = None
    return sent


def _role(message: BaseMessage, position: str) -> str:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return str(message.additional_kwargs.get("__openai_role__", "system"))  # "developer", as core marks it
    if isinstance(message, (ToolMessage, FunctionMessage)):
        return "tool"
    if isinstance(message, ChatMessage):
        return message.role
    raise InvalidInputError(f"{position} is a {type(message).__name__}, which has no counterpart in a chat template")


def _content(message: BaseMessage, position: str, is_asked: bool) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    elsewhere, reads_files = _sent_elsewhere(message), isinstance(message, HumanMessage)
    return [
        _part(block, f"{position}.content[{index}]", reads_files, is_asked)
        for index, block in enumerate(message.content)
        if not (isinstance(block, dict) and block.get("type") in elsewhere)
    ]


def _part(block: str | dict[Any, Any], position: str, reads_files: bool, is_asked: bool) -> dict[str, Any]:
    try:
        return to_openai_part(block, position, reads_files=reads_files)
    except InvalidInputError:
        if is_asked:
            raise
        return {"type": "text", "text": block_as_text(block)}


def _sent_elsewhere(message: BaseMessage) -> tuple[str, ...]:
    """Types of the blocks that other fields of the sent message stand for."""
    if not isinstance(message, AIMessage):
        return ()
    return _REASONING_BLOCKS + (_TOOL_CALL_BLOCKS if message.tool_calls or message.invalid_tool_calls else ())


def _answer_fields(message: AIMessage, position: str) -> dict[str, Any]:
    """Reasoning and tool calls of an answer."""
    fields: dict[str, Any] = {}
    reasoning = message.additional_kwargs.get("reasoning_content") or "".join(_thoughts(message.content))
    if reasoning:
        fields["reasoning"] = reasoning
    calls = _calls(message, position)
    if calls:
        fields["tool_calls"] = calls
    return fields


def _calls(message: AIMessage, position: str) -> list[dict[str, Any]]:
    """The calls that could be made, and those that could not; a stand-in is there as what it stands for."""
    made = [
        openai_tool_call(call["id"], call["name"], sent_arguments(call["args"], f"{position}.tool_calls[{index}]"))
        for index, call in enumerate(message.tool_calls)
        if not is_stand_in(call["name"])
    ]
    older = message.additional_kwargs.get("function_call")  # of OpenAI's first form of tools
    if not made and not message.invalid_tool_calls and isinstance(older, Mapping):
        arguments = sent_arguments(older.get("arguments") or "", position)
        return [openai_tool_call(None, str(older.get("name")), arguments)]
    ids = {call["id"] for call in made}
    return made + [
        openai_tool_call(call["id"], call["name"], sent_arguments(call["args"] or "", position))
        for call in message.invalid_tool_calls
        if call["id"] not in ids
    ]


def _thoughts(content: str | list[str | dict[Any, Any]]) -> Iterable[str]:
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and block.get("type") in _REASONING_BLOCKS:
            yield str(block.get(block["type"]) or "")
