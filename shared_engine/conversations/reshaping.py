"""A conversation without what a chat template does not take: its messages joined, moved or written as text, in their
order, and nothing that was said left out. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from shared_engine.conversations.notes import media_note
from shared_engine.conversations.traits import (
    MISTRALS_ID,
    SYSTEM_ROLES,
    Message,
    Trait,
    answered_calls,
    calls_of,
    first_of_turn,
    function_of,
    is_media,
    name_of,
    text_of,
)

Messages = list[dict[str, Any]]

BETWEEN = "\n\n"
"""Between joined texts, as vLLM joins system messages (vllm/renderers/hf.py)."""
USER_GOES_ON = "Please continue."
ASSISTANT_GOES_ON = "OK."
NO_RESULT = "[there is no result of this call]"


def reshaped(messages: Sequence[Message], refused: Trait) -> Messages:
    """The conversation without the traits ``refused``. The caller's messages stay as they are.

    A message that nobody has said is added only where a template wants one: before the assistant's first or behind its
    last one (``USER_GOES_ON``), or between a tool's result and the user (``ASSISTANT_GOES_ON``).
    """
    made = [dict(message) for message in messages]
    for trait, change in _CHANGES.items():
        if trait in refused:
            made = change(made)
    return made


# ---- one change each


def _without_empty(messages: Messages) -> Messages:
    def says_something(message: Message) -> bool:
        return message["role"] != "assistant" or bool(message.get("tool_calls") or text_of(message.get("content")))

    return [message for message in messages if says_something(message)] or messages


def _with_notes_for_media(messages: Messages) -> Messages:
    turn = first_of_turn(messages)
    return [
        message if message["role"] == "user" and index >= turn else _noted(message)
        for index, message in enumerate(messages)
    ]


def _noted(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_note_of(part) if is_media(part) else part for part in content]}


def _note_of(part: Message) -> dict[str, Any]:
    return {"type": "text", "text": media_note(part)}


def _paired(messages: Messages) -> Messages:
    """A result without a call is told by the user; a call without a result has one that says so."""
    answered, left = answered_calls(messages)
    made: Messages = []
    missing: Messages = []
    for index, message in enumerate(messages):
        if message["role"] == "tool" and index not in answered:
            message = _told(message, message.get("name"))
        if message["role"] in ("user", "assistant"):
            made, missing = made + missing, []
        made.append(message)
        missing += [
            {"role": "tool", "tool_call_id": call.get("id") or "", "content": NO_RESULT}
            for at, call in enumerate(calls_of(message))
            if (index, at) in left
        ]
    return made + missing


def _calls_as_text(messages: Messages) -> Messages:
    answered, _ = answered_calls(messages)
    made: Messages = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            of = answered.get(index)
            named = "" if of is None else name_of(calls_of(messages[of[0]])[of[1]])
            made.append(_told(message, message.get("name") or named))
        elif calls_of(message):
            written = "\n".join(map(_call_in_words, calls_of(message)))
            kept = {name: value for name, value in message.items() if name != "tool_calls"}
            made.append({**kept, "content": _content(message.get("content"), written)})
        else:
            made.append(message)
    return made


def _call_in_words(call: Message) -> str:
    return f"[call of {name_of(call)}: {function_of(call).get('arguments') or '{}'}]"


def _told(result: Message, name: str | None) -> dict[str, Any]:
    """A tool's result as the user's words."""
    heading = f"[result of {name}]" if name else "[result of a tool]"
    return {"role": "user", "content": _content(heading, result.get("content"), "\n")}


def _with_mistrals_ids(messages: Messages) -> Messages:
    answered, _ = answered_calls(messages)
    made = [dict(message) for message in messages]
    for index, message in enumerate(messages):
        if calls_of(message):
            made[index]["tool_calls"] = [
                {**call, "id": _mistrals_id(index, at, call)} for at, call in enumerate(calls_of(message))
            ]
        elif message["role"] == "tool":
            place = answered.get(index)
            call = {"id": message.get("tool_call_id")} if place is None else calls_of(messages[place[0]])[place[1]]
            made[index]["tool_call_id"] = _mistrals_id(*(place or (index, 0)), call)
    return made


def _mistrals_id(index: int, at: int, call: Message) -> str:
    """The same for the same call in each turn to come, where it has an id of its own."""
    named = str(call.get("id") or f"message {index}")
    if MISTRALS_ID.fullmatch(named):
        return named
    return hashlib.sha256(f"{named} {at}".encode()).hexdigest()[:9]


def _system_first(messages: Messages) -> Messages:
    systems = [message for message in messages if message["role"] in SYSTEM_ROLES]
    others = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    return [_all_joined(systems), *others] if systems else others


def _system_in_users(messages: Messages) -> Messages:
    """What the system says at the head of what the user says first."""
    systems = [message for message in messages if message["role"] in SYSTEM_ROLES]
    if not systems:
        return messages
    said = {**_all_joined(systems), "role": "user"}
    others = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if others and others[0]["role"] == "user":
        return [_joined(said, others[0]), *others[1:]]
    return [said, *others]


def _user_first(messages: Messages) -> Messages:
    head = [message for message in messages if message["role"] in SYSTEM_ROLES]
    others = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if not others:
        return [{**_all_joined(head), "role": "user"}]
    if others[0]["role"] == "user":
        return messages
    return [*head, {"role": "user", "content": USER_GOES_ON}, *others]


def _user_last(messages: Messages) -> Messages:
    if messages[-1]["role"] != "assistant" or calls_of(messages[-1]):
        return messages
    return [*messages, {"role": "user", "content": USER_GOES_ON}]


def _assistant_after_tools(messages: Messages) -> Messages:
    made: Messages = []
    for message in messages:
        if message["role"] == "user" and made and made[-1]["role"] == "tool":
            made.append({"role": "assistant", "content": ASSISTANT_GOES_ON})
        made.append(message)
    return made


def _without_neighbours(messages: Messages) -> Messages:
    made: Messages = []
    for message in messages:
        if made and message["role"] in ("user", "assistant") and message["role"] == made[-1]["role"]:
            made[-1] = _joined(made[-1], message)
        else:
            made.append(message)
    return made


# In this order: what one leaves behind may be another's to change.
_CHANGES: dict[Trait, Callable[[Messages], Messages]] = {
    Trait.MEDIA: _with_notes_for_media,
    Trait.EMPTY: _without_empty,
    Trait.TOOLS: _calls_as_text,
    Trait.UNPAIRED: _paired,
    Trait.CALL_IDS: _with_mistrals_ids,
    Trait.LATE_SYSTEM: _system_first,
    Trait.SYSTEM: _system_in_users,
    Trait.OPENING: _user_first,
    Trait.USER_AFTER_TOOL: _assistant_after_tools,
    Trait.ENDING: _user_last,
    Trait.NEIGHBOURS: _without_neighbours,
}


# ---- two messages as one


def _all_joined(messages: Messages) -> dict[str, Any]:
    made = messages[0]
    for message in messages[1:]:
        made = _joined(made, message)
    return made


def _joined(first: Message, second: Message) -> dict[str, Any]:
    made = {**first, **second}
    if "developer" in (first["role"], second["role"]):
        made["role"] = "system" if "system" in (first["role"], second["role"]) else "developer"
    contents = [first.get("content"), second.get("content")]
    names = [first.get("name"), second.get("name")]
    if names[0] != names[1]:  # who said which
        made.pop("name")
        contents = [
            _content(f"{name}:", content, " ") if name else content
            for name, content in zip(names, contents, strict=True)
        ]
    made["content"] = _content(contents[0], contents[1])
    calls = [*(first.get("tool_calls") or ()), *(second.get("tool_calls") or ())]
    if calls:
        made["tool_calls"] = calls
        made["content"] = made["content"] or None
    for field in ("reasoning", "reasoning_content"):
        thoughts = [message[field] for message in (first, second) if message.get(field)]
        if thoughts:
            made[field] = BETWEEN.join(thoughts)
    return made


def _content(first: Any, second: Any, between: str = BETWEEN) -> Any:
    """Two contents as one: a text, or the parts of both."""
    if not first or not second:
        return first or second or ""
    if isinstance(first, str) and isinstance(second, str):
        return first + between + second
    before, after = _parts(first), _parts(second)
    if before[-1].get("type") == after[0].get("type") == "text":
        seam = {**before[-1], "text": f"{before[-1]['text']}{between}{after[0]['text']}"}
        return [*before[:-1], seam, *after[1:]]
    return [*before, *after]


def _parts(content: Any) -> list[dict[str, Any]]:
    parts = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in parts]
