"""Results of tools as chat templates take them: text, or content parts, of a length that can fit. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

from shared_engine.conversations.surrogates import readable_text
from shared_engine.conversations.traits import Message

MOST_CHARACTERS_A_TOKEN = 4
"""Of ordinary text. With more for each token of the context window, a result alone fills it."""
KEPT_CHARACTERS_A_TOKEN = 0.5
"""Of a result that is cut: it fits in any language, and leaves room."""


def readable(messages: Any) -> Any:
    """The messages; what a tool has returned that is neither text nor content parts is its JSON. Anything else as it
    is.
    """
    if not isinstance(messages, (list, tuple)) or not any(map(_is_result, messages)):
        return messages
    return [
        {**message, "content": _readable(message.get("content"))} if _is_result(message) else message
        for message in messages
    ]


def _is_result(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "tool"


def _readable(content: Any) -> Any:
    if isinstance(content, str):
        return readable_text(content)
    if isinstance(content, list) and all(map(_is_part, content)):
        return [_unicode_part(part) for part in content]
    if content is None:
        return ""
    if isinstance(content, (bytes, bytearray)):
        return content.decode(errors="replace") if _is_utf8(content) else f"[{len(content)} bytes are not shown]"
    return json.dumps(to_jsonable_python(content, fallback=str), ensure_ascii=False)


def _unicode_part(part: Any) -> Any:
    if isinstance(part, str):
        return readable_text(part)
    return {**part, "text": readable_text(part["text"])} if _text(part) else part


def _is_part(part: object) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and isinstance(part.get("type"), str))


def _is_utf8(content: bytes | bytearray) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- length


def limits_of(window: int | None) -> tuple[int, int] | tuple[None, None]:
    """Of a context window of so many tokens: the longest result that is not cut, and what is kept of a longer one."""
    if window is None:
        return None, None
    return window * MOST_CHARACTERS_A_TOKEN, int(window * KEPT_CHARACTERS_A_TOKEN)


def cut_results(messages: Sequence[Message], most: int, kept: int) -> Sequence[Message]:
    """The messages themselves, where no tool's result has a text of more than ``most`` characters. Of such a text so
    many are ``kept``, of its beginning and end, and it says how many are left out.
    """
    if not any(_is_result(message) and _is_long(message.get("content"), most) for message in messages):
        return messages
    return [
        {**message, "content": _cut_content(message.get("content"), most, kept)} if _is_result(message) else message
        for message in messages
    ]


def _is_long(content: Any, most: int) -> bool:
    texts = [content] if isinstance(content, str) else [_text(part) for part in content or ()]
    return any(len(text) > most for text in texts)


def _text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


def _cut_content(content: Any, most: int, kept: int) -> Any:
    if isinstance(content, str):
        return _cut(content, most, kept)
    return [_cut_part(part, most, kept) for part in content]


def _cut_part(part: Any, most: int, kept: int) -> Any:
    if isinstance(part, str):
        return _cut(part, most, kept)
    return {**part, "text": _cut(part["text"], most, kept)} if _text(part) else part


def _cut(text: str, most: int, kept: int) -> str:
    if len(text) <= most:
        return text
    end = kept // 4
    head, tail = text[: kept - end], text[len(text) - end :]
    return f"{head}\n[... {len(text) - kept} characters of the tool's result are left out ...]\n{tail}"
