"""Halves of surrogate pairs: what is no Unicode, though a Python string can have it. No server takes it. Pure.

They come from names of files that are not UTF-8, from tools that cut a text, and from models that write half an emoji
as an escape (``"\\ud83d"``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_engine.conversations.traits import Message


def readable_text(text: str) -> str:
    """The text; each half as its number, ``\\ud83d``, as which JSON has it too."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def without_surrogates(messages: Sequence[Message]) -> list[Message]:
    """The messages; those of the model's, and of its tools, with none: nobody could take them out of a conversation.
    What a user writes is told to its writer instead.
    """
    return [_readable(each) if each.get("role") in ("assistant", "tool") else each for each in messages]


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return readable_text(value)
    if isinstance(value, Mapping):
        return {_readable(name): _readable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(each) for each in value]
    return value
