"""Files of this machine that a message names: what they are, and their bytes. Knows nothing of blocks."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded

MAX_FILE_BYTES = 256 << 20
"""The largest file that is sent; also the largest that vLLM downloads (VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)."""

# Of these Python's own table says different things by its version, and by the system's table.
_TYPES = {
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".m4v": "video/mp4",
    ".mkv": "video/x-matroska",
}


def mime_type_of(file: Path) -> str | None:
    """The MIME type, by the file's name; None where that is not enough."""
    return _TYPES.get(file.suffix.lower()) or mimetypes.guess_type(file.name, strict=False)[0]


def file_of(place: object, position: str) -> Path:
    """The file at a path, or that a ``file:`` URL names.

    Raises:
        InvalidInputError: it is neither, or the URL is of another machine.
    """
    if not isinstance(place, (str, os.PathLike)):
        raise InvalidInputError(f"{position} has the path {place!r:.80}, of type {type(place).__name__}")
    if not isinstance(place, str) or place[:5].lower() != "file:":
        return expanded(place)
    parts = urlsplit(place)
    if parts.netloc not in ("", "localhost"):
        raise InvalidInputError(f"{position} names {place!r}, a file on another machine")
    return Path(unquote(parts.path))


def read_file(file: Path, position: str) -> bytes:
    """The content of the file, which may have up to MAX_FILE_BYTES bytes.

    Raises:
        InvalidInputError: it is missing, not a regular file, empty, too large, or can't be read.
    """
    try:
        if not file.is_file():  # opening a pipe would block until something is written to it
            raise InvalidInputError(f"{position} names {file}, which {_what_else(file)}")
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            limit = f"at most {MAX_FILE_BYTES >> 20} MiB can be sent"
            raise InvalidInputError(f"{position} names {file}, which has {size >> 20} MiB: {limit}")
        content = file.read_bytes()
    except OSError as exc:
        raise InvalidInputError(f"{position} names {file}, which can't be read: {exc.strerror or exc}") from exc
    if not content:
        raise InvalidInputError(f"{position} names {file}, which is empty")
    return content


def _what_else(file: Path) -> str:
    return "is not a regular file" if file.exists() else f"does not exist (from {Path.cwd()})"
