"""LangChain's messages -> OpenAI's, as the engine takes them. Pure (but see _blocks).

Nothing of the caller's is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_vllm_local._answer_blocks import call_of, is_call, is_thought, thought_of
from langchain_vllm_local._blocks import names_file, to_openai_part
from langchain_vllm_local._tools import openai_tool_call
from shared_engine.adapting.media_errors import Wording
from shared_engine.adapting.other_blocks import block_as_text
from shared_engine.adapting.tools import is_stand_in, sent_arguments, without_stand_in
from shared_engine.errors import InvalidInputError


class _Piece(NamedTuple):
    """What one message in OpenAI's form is made of: a message, or a result of a tool within one."""

    message: BaseMessage
    position: str


def wording(messages: Sequence[BaseMessage]) -> Wording:
    """What errors about the conversation call its blocks."""

    def position(message: int, part: int) -> str:
        pieces = [piece for pieces in _pieces_of(messages) for piece in pieces]
        return _sent_blocks(pieces[message])[part][0]

    return Wording(position=position, local_file=lambda kind: f"{{'type': {kind!r}, 'path': ...}}")


def to_openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form. The caller's messages stay as they are.

    In Anthropic's form results of tools are blocks of what the user says, and calls are blocks of the answer: they are
    sent as OpenAI's.

    A block that can't be sent is an error where it is asked about: in system messages, and in what the user says after
    the last answer. Elsewhere, in results of tools and in earlier turns, text takes its place that says what it was:
    the conversation would be at its end.

    Raises:
        InvalidInputError: naming the message, or the block in it, that can't be sent.
    """
    answers = [index for index, message in enumerate(messages) if isinstance(message, AIMessage)]
    turn = answers[-1] + 1 if answers else 0
    return [
        _to_openai_message(piece, is_asked=_is_asked(piece.message, index >= turn))
        for index, pieces in enumerate(_pieces_of(messages))
        for piece in pieces
    ]


def _pieces_of(messages: Sequence[BaseMessage]) -> Iterator[list[_Piece]]:
    """Of each message: the results of tools in it, then the rest of it, if there is one."""
    for index, message in enumerate(messages):
        position = f"messages[{index}]"
        results = list(_results(message, position))
        is_all = results and len(results) == len(message.content)
        yield results if is_all else [*results, _Piece(message, position)]


def _results(message: BaseMessage, position: str) -> Iterator[_Piece]:
    if not isinstance(message, HumanMessage) or isinstance(message.content, str):
        return
    for index, block in enumerate(message.content):
        if _is_result(block):
            result = ToolMessage(
                block.get("content") or "",
                tool_call_id=str(block.get("tool_use_id") or ""),
                status="error" if block.get("is_error") else "success",
            )
            yield _Piece(result, f"{position}.content[{index}]")


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


def _to_openai_message(piece: _Piece, *, is_asked: bool) -> dict[str, Any]:
    message, position = piece
    sent: dict[str, Any] = {"role": _role(message, position), "content": _content(piece, is_asked)}
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


def _content(piece: _Piece, is_asked: bool) -> str | list[dict[str, Any]]:
    if isinstance(piece.message.content, str):
        return piece.message.content
    reads_files = isinstance(piece.message, HumanMessage)
    return [_part(block, position, reads_files, is_asked) for position, block in _sent_blocks(piece)]


def _sent_blocks(piece: _Piece) -> list[tuple[str, str | dict[Any, Any]]]:
    """The blocks that the content is made of, each with its position."""
    blocks = [
        (f"{piece.position}.content[{index}]", block)
        for index, block in enumerate(piece.message.content)
        if not _is_sent_elsewhere(piece.message, block)
    ]
    return _with_joined_texts(blocks) if isinstance(piece.message, AIMessage) else blocks


def _with_joined_texts(blocks: list[tuple[str, str | dict[Any, Any]]]) -> list[tuple[str, str | dict[Any, Any]]]:
    """Texts of an answer, between which were thoughts and calls, as the one that they are. vLLM would put line breaks
    between them.
    """
    joined: list[tuple[str, str | dict[Any, Any]]] = []
    for position, block in blocks:
        before, text = _text_of(joined[-1][1]) if joined else None, _text_of(block)
        if before is None or text is None:
            joined.append((position, block))
        else:
            joined[-1] = (joined[-1][0], {"type": "text", "text": before + text})
    return joined


def _text_of(block: str | dict[Any, Any]) -> str | None:
    text = block if isinstance(block, str) else block.get("text") if block.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _part(block: str | dict[Any, Any], position: str, reads_files: bool, is_asked: bool) -> dict[str, Any]:
    try:
        return to_openai_part(block, position, reads_files=reads_files)
    except InvalidInputError:
        if is_asked:
            raise
        return {"type": "text", "text": block_as_text(block)}


def _is_sent_elsewhere(message: BaseMessage, block: object) -> bool:
    """Whether another field of the sent message, or another message, stands for the block."""
    if not isinstance(block, dict):
        return False
    if isinstance(message, HumanMessage):
        return _is_result(block)
    if not isinstance(message, AIMessage):
        return False
    if is_thought(block):
        return True
    return is_call(block) if _names_calls(message) else call_of(block) is not None


def _names_calls(message: AIMessage) -> bool:
    return bool(message.tool_calls or message.invalid_tool_calls)


def _is_result(block: object) -> TypeGuard[dict[str, Any]]:
    """A result of a tool, as Anthropic has it."""
    return isinstance(block, dict) and block.get("type") == "tool_result"


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
    """The calls that could be made, and those that could not; a stand-in is there as what it stands for, also where
    other programs have left only that.
    """
    if not _names_calls(message):
        return list(_unnamed_calls(message, position))
    invalid = {call["id"] for call in message.invalid_tool_calls}
    made = [
        openai_tool_call(
            call["id"],
            without_stand_in(call["name"]),
            sent_arguments(call["args"], f"{position}.tool_calls[{index}]"),
        )
        for index, call in enumerate(message.tool_calls)
        if not (is_stand_in(call["name"]) and call["id"] in invalid)
    ]
    ids = {call["id"] for call in made}
    return made + [
        openai_tool_call(call["id"], call["name"], sent_arguments(call["args"] or "", position))
        for call in message.invalid_tool_calls
        if call["id"] not in ids
    ]


def _unnamed_calls(message: AIMessage, position: str) -> Iterator[dict[str, Any]]:
    """Calls that are not in ``tool_calls``: of OpenAI's first form of tools, and blocks of other providers' answers."""
    older = message.additional_kwargs.get("function_call")
    if isinstance(older, Mapping):
        yield openai_tool_call(None, str(older.get("name")), sent_arguments(older.get("arguments") or "", position))
        return
    for index, block in enumerate(message.content if isinstance(message.content, list) else ()):
        call = call_of(block)
        if call is not None:
            arguments = sent_arguments(call.arguments, f"{position}.content[{index}]")
            yield openai_tool_call(call.call_id, call.name, arguments)


def _thoughts(content: str | list[str | dict[Any, Any]]) -> Iterable[str]:
    return (thought_of(block) for block in content if is_thought(block)) if isinstance(content, list) else ()
