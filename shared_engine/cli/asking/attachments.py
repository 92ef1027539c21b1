"""Files and URLs that go with a prompt -> OpenAI's content parts: images, sounds, videos, and texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from shared_engine.adapting.local_files import file_of, mime_type_of, read_file
from shared_engine.adapting.media_errors import Wording
from shared_engine.adapting.media_parts import MEDIA_KINDS, as_text, data_url, media_part
from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded

Part = dict[str, Any]

WORDING = Wording(
    position=lambda message, part: f"attachment {part + 1} of message {message + 1}",
    local_file=lambda kind: f"the path of the {kind}, not a file: URL",
)

# A path as terminals paste it when a file is dropped on them: in quotes, or with backslashes before blanks.
_OTHER_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DROPPED = re.compile(r"""(?<!\S)(?:'(?P<single>[^'\n]+)'|"(?P<double>[^"\n]+)"|(?P<bare>(?:\\.|[^\s\\'"])+))(?!\S)""")


def attachment(place: str) -> Part:
    """The part for a path, a ``file:`` URL or a web address. What is on the web is loaded by the server.

    Raises:
        InvalidInputError: the file can't be read, or is neither media nor text.
    """
    position = f"attachment {place!r:.200}"
    if re.match(r"https?://", place, re.IGNORECASE):
        return media_part(_kind(mime_type_of(Path(urlsplit(place).path))) or "image", place)
    if place[:5].lower() == "data:":
        return media_part(_kind(place[5:]) or "image", place)
    if _OTHER_URL.match(place):
        raise InvalidInputError(f"{position} is a URL of a kind that is not loaded: give a path, or http(s)://")
    file = file_of(place, position)
    content = read_file(file, position)
    mime_type = mime_type_of(file)
    kind = _kind(mime_type)
    if kind is not None:
        return media_part(kind, data_url(str(mime_type), content))
    if b"\0" in content:
        raise InvalidInputError(f"{position} is neither text nor an image, a sound or a video")
    return {"type": "text", "text": f"{file.name}:\n\n{as_text(content, position)}"}


def user_message(text: str, parts: Sequence[Part] = ()) -> dict[str, Any]:
    """What was attached stands before the text, which is about it."""
    content = [*parts, *([{"type": "text", "text": text}] if text else [])]
    return {"role": "user", "content": content if parts else text}


def without_dropped_files(text: str) -> tuple[str, list[str]]:
    """The text without the media files whose full paths stand in it, and these: a file dropped on a terminal."""
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        bare = match["bare"]
        path = match["single"] or match["double"] or re.sub(r"\\(.)", r"\1", bare or "")
        if path.startswith("file:///"):
            path = unquote(path[7:])
        if not path.startswith(("/", "~/")):
            return match[0]
        file = expanded(path)
        if _kind(mime_type_of(file)) is None or not _is_file(file):
            return match[0]
        found.append(str(file))
        return ""

    rest = _DROPPED.sub(take, text)
    return (rest.strip(), found) if found else (text, [])


def describe(part: Part) -> str:
    """``image``, ``audio``, ``video`` or ``text``, for people."""
    return str(part["type"]).removesuffix("_url")


def _kind(mime_type: str | None) -> str | None:
    kind = (mime_type or "").partition("/")[0]
    return kind if kind in MEDIA_KINDS else None


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # such as a name that is too long
        return False
