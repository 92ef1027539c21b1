"""What a conversation may have, and many a chat template does not take. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Flag, auto
from typing import Any

Message = Mapping[str, Any]

SYSTEM_ROLES = ("system", "developer")
MEDIA_PARTS = (
    "image_url", "audio_url", "video_url", "input_audio", "image_embeds", "audio_embeds", "video_embeds",
    "tool_reference",
)  # fmt: skip
MISTRALS_ID = re.compile(r"[a-zA-Z0-9]{9}")


class Trait(Flag):
    """One of them, or several."""

    SYSTEM = auto()
    """A system message."""
    LATE_SYSTEM = auto()
    """One that is not the first message, or a second one."""
    NEIGHBOURS = auto()
    """Two messages of the user's, or of the assistant's, in a row."""
    OPENING = auto()
    """The user does not begin, or says nothing."""
    ENDING = auto()
    """The assistant's message is the last, and is not to be continued."""
    EMPTY = auto()
    """A message of the assistant's without text or calls."""
    TOOLS = auto()
    """Calls of tools, or their results."""
    USER_AFTER_TOOL = auto()
    """The user speaks after a tool's result, before the assistant."""
    UNPAIRED = auto()
    """A call without a result, or a result without a call."""
    CALL_IDS = auto()
    """Ids of calls other than Mistral's, of nine letters and digits; or none."""
    MEDIA = auto()
    """Images, sound or video that the user did not send in the last turn: of tools, of the assistant, of old turns."""


NONE = Trait(0)
MERGED = Trait.LATE_SYSTEM | Trait.NEIGHBOURS
"""What ``merge_messages="always"`` leaves in no conversation."""


def traits_of(messages: Sequence[Message], *, is_continued: bool = False) -> Trait:
    """All that the conversation has.

    Args:
        messages: in OpenAI's form.
        is_continued: the answer goes on with the last message.
    """
    found = NONE
    before: Message | None = None
    turn = first_of_turn(messages)
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in SYSTEM_ROLES:
            found |= Trait.SYSTEM | (Trait.LATE_SYSTEM if index else NONE)
            continue  # its neighbours are neighbours once it stands at the front
        previous = None if before is None else before.get("role")
        if role in ("user", "assistant") and role == previous:
            found |= Trait.NEIGHBOURS
        if previous is None and role != "user":
            found |= Trait.OPENING
        if role == "tool" or message.get("tool_calls"):
            found |= Trait.TOOLS
        elif role == "assistant" and not text_of(message.get("content")):
            found |= Trait.EMPTY
        if role == "user" and previous == "tool":
            found |= Trait.USER_AFTER_TOOL
        if (role != "user" or index < turn) and has_media(message):
            found |= Trait.MEDIA
        before = message
    if before is None:
        found |= Trait.OPENING
    elif before.get("role") == "assistant" and not before.get("tool_calls") and not is_continued:
        found |= Trait.ENDING
    if Trait.TOOLS in found:
        found |= _of_calls(messages)
    return found


def first_of_turn(messages: Sequence[Message]) -> int:
    """The position behind the assistant's last message: what the user says there is what is asked now."""
    return max((index + 1 for index, message in enumerate(messages) if message.get("role") == "assistant"), default=0)


def has_media(message: Message) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(is_media(part) for part in content)


def is_media(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in MEDIA_PARTS


def text_of(content: Any) -> str:
    """The text of a message's content, for a look at whether there is any; parts of other kinds count as some."""
    if isinstance(content, list):
        return "".join(part if isinstance(part, str) else str(part.get("text", part.get("type"))) for part in content)
    return content or ""


# ---- calls and results


def answered_calls(messages: Sequence[Message]) -> tuple[dict[int, tuple[int, int]], set[tuple[int, int]]]:
    """Which call each result is of, by the positions of the result, and of the call's message and the call in it; and
    the calls that have none. A result that names no call is of the first that has none yet; of its tool, where it names
    that.
    """
    answered: dict[int, tuple[int, int]] = {}
    left: set[tuple[int, int]] = set()
    open_calls: list[tuple[int, int]] = []

    def call_at(place: tuple[int, int]) -> Message:
        return calls_of(messages[place[0]])[place[1]]

    for index, message in enumerate(messages):
        if message.get("role") == "tool":
            named, tool = message.get("tool_call_id"), message.get("name")
            fitting = [place for place in open_calls if not named or call_at(place).get("id") == named]
            if not named and tool:
                fitting = [place for place in fitting if name_of(call_at(place)) == tool] or fitting
            if fitting:
                answered[index] = fitting[0]
                open_calls.remove(fitting[0])
        elif message.get("role") not in SYSTEM_ROLES:
            left.update(open_calls)
            open_calls = [(index, at) for at in range(len(calls_of(message)))]
    return answered, left | set(open_calls)


def calls_of(message: Message) -> Sequence[Message]:
    """The calls in a message, which the server has to refuse where they are none."""
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls) else ()


def function_of(call: Message) -> Mapping[str, Any]:
    function = call.get("function")
    return function if isinstance(function, Mapping) else {}


def name_of(call: Message) -> str:
    """Of its tool."""
    return str(function_of(call).get("name") or "")


def _of_calls(messages: Sequence[Message]) -> Trait:
    answered, left = answered_calls(messages)
    results = [message for message in messages if message.get("role") == "tool"]
    found = Trait.UNPAIRED if left or len(answered) < len(results) else NONE
    ids = [call.get("id") for message in messages for call in calls_of(message)]
    ids += [result.get("tool_call_id") for result in results]
    return found | (NONE if all(MISTRALS_ID.fullmatch(str(each or "")) for each in ids) else Trait.CALL_IDS)
