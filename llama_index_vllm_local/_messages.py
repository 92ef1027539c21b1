"""LlamaIndex's messages -> OpenAI's, as the engine takes them. Pure (but see _blocks).

Nothing of the caller's is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from llama_index_vllm_local._blocks import Part, any_names_file, part_as_text, to_openai_parts
from llama_index_vllm_local._tools import openai_tool_call
from shared_engine.adapting.media_errors import Wording
from shared_engine.adapting.tools import sent_arguments
from shared_engine.errors import InvalidInputError

# LlamaIndex's words for roles that a chat template knows by another name.
_ROLES = {MessageRole.CHATBOT: "assistant", MessageRole.MODEL: "assistant", MessageRole.FUNCTION: "tool"}
# Sent in other fields of the message; or not at all, as vLLM caches every prefix anyway.
_SENT_ELSEWHERE = (ThinkingBlock, ToolCallBlock, CachePoint)
_OPENAIS_FIELDS = ("tool_call_id", "name")
_OTHER_ARGUMENTS = ("input", "args")  # of a call that has its name beside them


class Conversation(NamedTuple):
    """Messages in OpenAI's form."""

    messages: list[dict[str, Any]]
    positions: list[list[str]]
    """Of each message, for each part of its content: the block that it was made of."""


def wording(positions: Sequence[Sequence[str]]) -> Wording:
    """What errors about a conversation call its blocks."""
    return Wording(
        position=lambda message, part: positions[message][part],
        local_file=lambda kind: f"{kind.capitalize()}Block(path=...)",
    )


def to_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """The conversation in OpenAI's form. The caller's messages stay as they are.

    A block that can't be sent is an error where it is asked about: in system messages, and in what the user says after
    the last answer. Elsewhere, in results of tools and in earlier turns, text takes its place that says what it was:
    the conversation would be at its end.

    Raises:
        InvalidInputError: naming the message, or the block in it, that can't be sent.
    """
    answers = [index for index, message in enumerate(messages) if _role(message) == "assistant"]
    turn = answers[-1] + 1 if answers else 0
    converted = [
        _to_openai_message(message, f"messages[{index}]", is_of_turn=index >= turn)
        for index, message in enumerate(messages)
    ]
    return Conversation([message for message, _ in converted], [positions for _, positions in converted])


def to_openai_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """See ``to_conversation``."""
    return to_conversation(messages).messages


def name_files(messages: Sequence[ChatMessage]) -> bool:
    """Whether to convert them is to read local files, for which an event loop should not have to wait."""
    return any(any_names_file(message.blocks) for message in messages if isinstance(message, ChatMessage))


def check_text_only(messages: Sequence[ChatMessage]) -> None:
    """
    Raises:
        InvalidInputError: naming the block that LlamaIndex would leave out when it makes a prompt of these messages.
    """
    for i, message in enumerate(messages):
        for j, block in enumerate(message.blocks):
            if not isinstance(block, (TextBlock, *_SENT_ELSEWHERE)):
                raise InvalidInputError(
                    f"messages[{i}].blocks[{j}] is of type {block.block_type!r}, and a model without a chat template "
                    f"takes only text: send its text, or give messages_to_prompt"
                )


def _role(message: object) -> str | None:
    """OpenAI's word for it; None for what is no message."""
    return _ROLES.get(message.role, message.role.value) if isinstance(message, ChatMessage) else None


def _to_openai_message(message: ChatMessage, position: str, *, is_of_turn: bool) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(message, ChatMessage):
        raise InvalidInputError(f"{position} must be a ChatMessage, got {type(message).__name__}: {message!r:.80}")
    role = _role(message)
    parts = _parts(message, position, is_asked=role not in ("assistant", "tool") and (is_of_turn or role != "user"))
    calls = _tool_calls(message, position)
    sent: dict[str, Any] = {"role": role, "content": _content(parts)}
    if calls and not parts:
        sent["content"] = None
    thoughts = [block.content for block in message.blocks if isinstance(block, ThinkingBlock) and block.content]
    if thoughts:
        sent["reasoning"] = "\n".join(thoughts)
    if calls:
        sent["tool_calls"] = calls
    sent.update({key: str(message.additional_kwargs[key]) for key in _OPENAIS_FIELDS if _has(message, key)})
    return sent, [part.position for part in parts]


def _parts(message: ChatMessage, position: str, *, is_asked: bool) -> list[Part]:
    reads_files = message.role == MessageRole.USER
    return [
        part
        for index, block in enumerate(message.blocks)
        if not isinstance(block, _SENT_ELSEWHERE)
        for part in _parts_of(block, f"{position}.blocks[{index}]", reads_files, is_asked)
    ]


def _parts_of(block: object, position: str, reads_files: bool, is_asked: bool) -> list[Part]:
    try:
        return list(to_openai_parts(block, position, reads_files=reads_files))
    except InvalidInputError:
        if is_asked:
            raise
        return [part_as_text(block, position)]


def _content(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """Text alone as a string, which many chat templates want."""
    if all(part.content["type"] == "text" for part in parts):
        return "\n".join(part.content["text"] for part in parts)
    return [part.content for part in parts]


def _tool_calls(message: ChatMessage, position: str) -> list[dict[str, Any]]:
    calls = [
        openai_tool_call(
            call.tool_call_id, call.tool_name, sent_arguments(call.tool_kwargs, f"{position}.blocks[{at}]")
        )
        for at, call in enumerate(message.blocks)
        if isinstance(call, ToolCallBlock)
    ]
    if calls:
        return calls
    # from a history that another LLM class wrote
    others = message.additional_kwargs.get("tool_calls") or ()
    return [_plain(call, f"{position}.additional_kwargs['tool_calls'][{index}]") for index, call in enumerate(others)]


def _has(message: ChatMessage, key: str) -> bool:
    return message.additional_kwargs.get(key) is not None


def _plain(call: Any, position: str) -> dict[str, Any]:
    """A tool call in OpenAI's form. The OpenAI package's objects are pydantic models, Ollama's have a dict in them and
    no id, Anthropic's have ``input``, Gemini's ``args``.
    """
    form = call.model_dump(exclude_none=True) if hasattr(call, "model_dump") else call
    if isinstance(form, Mapping):
        function = next((form for key in _OTHER_ARGUMENTS if key in form), form.get("function"))
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            arguments = next((function[key] for key in ("arguments", *_OTHER_ARGUMENTS) if function.get(key)), "")
            if isinstance(arguments, (str, Mapping)):
                call_id = form.get("id")
                sent = openai_tool_call(None, function["name"], sent_arguments(arguments, position))
                return {**sent, "id": "" if call_id is None else str(call_id)}
    raise InvalidInputError(
        f"{position} is not a call in OpenAI's form, {{'id': ..., 'function': {{'name': ..., 'arguments': ...}}}}: "
        f"{call!r:.80}"
    )
