"""An image, a sound or a video as the content part that vLLM takes; and which files are one. Pure."""

from __future__ import annotations

import base64
from typing import Any

from shared_engine.errors import InvalidInputError

MEDIA_KINDS = ("image", "audio", "video")


def media_part(kind: str, url: str | None, uuid: object = None) -> dict[str, Any]:
    """``url`` None: what vLLM has seen under that ``uuid`` before."""
    part: dict[str, Any] = {"type": f"{kind}_url", f"{kind}_url": None if url is None else {"url": url}}
    return part if uuid is None else {**part, "uuid": uuid}


def data_url(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def is_of_kind(mime_type: str, kind: str) -> bool:
    """Whether a file of that type can be meant by an image, a sound, a video."""
    return mime_type.startswith(f"{kind}/") or (kind == "audio" and mime_type.startswith("video/"))  # its sound


def as_text(content: bytes, position: str) -> str:
    """
    Raises:
        InvalidInputError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{position} must be UTF-8 text: {exc}") from exc
