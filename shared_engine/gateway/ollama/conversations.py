"""Ollama's messages -> OpenAI's: pictures, tool calls and the results that belong to them. Pure."""

from __future__ import annotations

import binascii
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from shared_engine.gateway.refusals import RefusedError

_IMAGES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
_HEAD = 16
"""Bytes at the beginning of a file that say what is in it."""


class _Function(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class ToolCall(msgspec.Struct):
    """One that a model has made; Ollama's older clients give it no id."""

    function: _Function
    id: str | None = None


class Message(msgspec.Struct):
    """One of a conversation.

    Attributes:
        images: each the base64 of a file; also of a sound.
        tool_name: of a tool's result: of which tool.
    """

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """
    Raises:
        RefusedError: what is to be an image is none.
    """
    given = _Ids()
    return [_message(message, given) for message in messages]


def user_message(text: str, images: Sequence[str]) -> dict[str, Any]:
    """
    Raises:
        RefusedError: what is to be an image is none.
    """
    content = [*map(_medium, images), {"type": "text", "text": text}] if images else text
    return {"role": "user", "content": content}


class _Ids:
    """Which call a result belongs to, where it does not say: the first that waits for one, of the tool it names."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[tuple[str, str]] = []

    def of_call(self, call: ToolCall) -> str:
        self._count += 1
        id_ = call.id or f"call_{self._count}"
        self._waiting.append((id_, call.function.name))
        return id_

    def of_result(self, message: Message) -> str:
        wanted = message.tool_call_id
        found = next(
            (
                each
                for each in self._waiting
                if (each[0] == wanted if wanted else message.tool_name in (None, "", each[1]))
            ),
            None,
        )
        if found is None:
            return wanted or f"call_{self._count}"
        self._waiting.remove(found)
        return found[0]


def _message(message: Message, given: _Ids) -> dict[str, Any]:
    role, text = message.role.lower(), message.content or ""
    told: dict[str, Any] = {**user_message(text, message.images or []), "role": role}
    if message.thinking:
        told["reasoning"] = message.thinking
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": given.of_call(call),
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": json.dumps(call.function.arguments or {}, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    if role == "tool":
        told["tool_call_id"] = given.of_result(message)
        if message.tool_name:
            told["name"] = message.tool_name
    return told


def _medium(encoded: str) -> dict[str, Any]:
    try:
        head = binascii.a2b_base64(encoded, strict_mode=True)[: 2 * _HEAD]
    except ValueError:
        raise RefusedError(
            400, "an image is not base64: URLs and file names are not fetched", "invalid_image"
        ) from None
    kind = next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is not None:
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded}"}}
    sound = _sound(head)
    if sound is not None:
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": sound}}
    raise RefusedError(
        400, "an image is in a format that is not known: send PNG, JPEG, WebP, GIF or BMP", "invalid_image"
    )


def _sound(head: bytes) -> str | None:
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    is_mp3 = head.startswith(b"ID3") or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 == 0xE2)
    return "mp3" if is_mp3 else None
