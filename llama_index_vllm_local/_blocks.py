"""One content block of a ChatMessage -> the content parts that vLLM takes.

A local file that a block names is read here, since the server may be on another machine. What is on the web goes as its
URL: nothing is downloaded here. Only the server knows whether the model takes images or sound: see
shared_engine.adapting.media_errors.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import IOBase
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import filetype  # type: ignore[import-untyped]
from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)

from shared_engine.adapting.local_files import file_of, mime_type_of, read_file
from shared_engine.adapting.media_parts import MEDIA_KINDS, as_text, data_url, is_of_kind, media_part
from shared_engine.adapting.other_blocks import block_as_text
from shared_engine.errors import InvalidInputError

DataBlock = ImageBlock | AudioBlock | VideoBlock | DocumentBlock
DATA_BLOCKS = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)
NESTING_BLOCKS = (CitableBlock, CitationBlock)

# A block's kind -> its field with the data, and the one with what they are.
_FIELDS = {
    "image": ("image", "image_mimetype"),
    "audio": ("audio", "format"),
    "video": ("video", "video_mimetype"),
    "document": ("data", "document_mimetype"),
}
_TYPES = ("document_mimetype", "image_mimetype", "video_mimetype", "format")
_TEXTS = ("json", "xml", "yaml", "x-yaml", "toml", "javascript", "x-ndjson", "sql")
_CORES_TITLE = "input_document"


class Part(NamedTuple):
    """A content part, and the block that it was made of: ``messages[0].blocks[1]``."""

    position: str
    content: dict[str, Any]


def to_openai_parts(block: object, position: str, *, reads_files: bool = True) -> Iterator[Part]:
    """The block as /v1/chat/completions of vLLM takes it: one part, or those of the blocks in it.

    Args:
        position: where the block is, for errors: ``messages[0].blocks[1]``.
        reads_files: the block may name a file of this machine.

    Raises:
        InvalidInputError: it can't be sent, or names a file that can't be read.
    """
    if isinstance(block, TextBlock):
        yield _text_part(block.text, position)
    elif isinstance(block, NESTING_BLOCKS):
        yield _text_part(f"{block.title} ({block.source})", position)
        for name, nested in _nested(block):
            yield from to_openai_parts(nested, f"{position}.{name}", reads_files=reads_files)
    elif isinstance(block, DATA_BLOCKS):
        yield Part(position, _data_part(block, _parse(block, position), position, reads_files))
    else:
        kinds = "text, images, audio, video, documents, citable content, thinking and tool calls"
        raise InvalidInputError(f"{position} is a {type(block).__name__}, which can't be sent; {kinds} can")


def part_as_text(block: object, position: str) -> Part:
    """What takes the place of a block that can't be sent: what it was, and the text in it."""
    fields = {name: getattr(block, name, None) for name in ("title", "source", "url", "path", *_TYPES)}
    kind = getattr(block, "block_type", None) or type(block).__name__
    mime_type = next((fields[name] for name in _TYPES if fields[name]), None)
    texts = [part.content.get("text", "") for _, nested in _nested_in(block) for part in _readable(nested, position)]
    described = {
        "type": kind,
        "name": " ".join(f"{fields[name]}" for name in ("title", "source") if fields[name] not in (None, _CORES_TITLE)),
        "mime_type": mime_type,
        "url": fields["url"] or fields["path"],
        "text": "\n".join(filter(None, texts)) or getattr(block, "text", None),
    }
    return _text_part(block_as_text({name: str(value) for name, value in described.items() if value}), position)


def _nested_in(block: object) -> list[tuple[str, object]]:
    return _nested(block) if isinstance(block, NESTING_BLOCKS) else []


def _readable(block: object, position: str) -> list[Part]:
    try:
        return list(to_openai_parts(block, position, reads_files=False))
    except InvalidInputError:
        return [part_as_text(block, position)]


def any_names_file(blocks: Iterable[object]) -> bool:
    """Whether a block among them names a file of this machine."""
    for block in blocks:
        if isinstance(block, DATA_BLOCKS) and (block.path or _is_file_url(block.url)):
            return True
        if isinstance(block, NESTING_BLOCKS) and any_names_file(nested for _, nested in _nested(block)):
            return True
    return False


def _nested(block: CitableBlock | CitationBlock) -> list[tuple[str, object]]:
    if isinstance(block, CitationBlock):
        return [("cited_content", block.cited_content)]
    return [(f"content[{index}]", nested) for index, nested in enumerate(block.content)]


def _text_part(text: str, position: str) -> Part:
    return Part(position, {"type": "text", "text": text})


# ---- the fields of a block


@dataclass(frozen=True)
class _Data:
    """Of content, file and url one at most, in core's order."""

    kind: str
    type_field: str
    mime_type: str | None
    content: bytes | None = None
    file: Path | None = None
    url: str | None = None


def _parse(block: DataBlock, position: str) -> _Data:
    data_field, type_field = _FIELDS[block.block_type]
    content = _content(getattr(block, data_field), f"{position}.{data_field}")
    given = getattr(block, type_field)
    mime_type = _mime_type_of_format(given) if block.block_type == "audio" else given
    url = None if block.url is None else str(block.url)
    if content:
        return _Data(block.block_type, type_field, mime_type or _guessed(content), content=content)
    if block.path or _is_file_url(url):
        file = file_of(block.path or url, position)
        return _Data(block.block_type, type_field, mime_type or mime_type_of(file), file=file)
    return _Data(block.block_type, type_field, mime_type, url=url or None)


def _is_file_url(url: object) -> bool:
    return str(url or "")[:5].lower() == "file:"


def _content(value: bytes | IOBase | None, position: str) -> bytes:
    """The bytes themselves; core has put them into base64 mostly, but not always."""
    raw = _read_stream(value, position) if isinstance(value, IOBase) else value or b""
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error:
        return raw


def _read_stream(stream: IOBase, position: str) -> bytes:
    """The whole content. The position is restored: the next request of the conversation has to read it again."""
    try:
        if not stream.seekable():
            raise InvalidInputError(f"{position} is a stream that can be read only once: give its bytes")
        before = stream.tell()
        stream.seek(0)
        content: object = stream.read()
        stream.seek(before)
    except (OSError, ValueError) as exc:  # ValueError: it is closed
        raise InvalidInputError(
            f"{position} is a stream that can't be read ({exc}): give its bytes, or its path"
        ) from exc
    if isinstance(content, bytes):
        return content
    raise InvalidInputError(f"{position} is a stream of {type(content).__name__}: open the file in binary mode")


def _mime_type_of_format(audio_format: str | None) -> str | None:
    """AudioBlock has a format such as ``wav`` or ``mp3`` where the others have a MIME type."""
    if not audio_format or "/" in audio_format:
        return audio_format
    return mime_type_of(Path(f"sound.{audio_format}")) or f"audio/{audio_format}"


def _guessed(content: bytes) -> str | None:
    """By its first bytes, as core does."""
    guess = filetype.guess(content)
    return None if guess is None else str(guess.mime)


# ---- what is sent


def _data_part(block: DataBlock, data: _Data, position: str, reads_files: bool) -> dict[str, Any]:
    if data.file is not None and not reads_files:
        # Messages come from tools and from other machines too, and must not have files of this one sent away.
        data_field = _FIELDS[data.kind][0]
        raise InvalidInputError(
            f"{position} names the file {data.file}; only a user message's are read: give its bytes as {data_field}"
        )
    if isinstance(block, DocumentBlock):
        return _document_part(block, data, position)
    if isinstance(block, VideoBlock) and block.fps is not None:
        setting = f"engine_args={{'media_io_kwargs': {{'video': {{'fps': {block.fps}}}}}}}"
        raise InvalidInputError(f"{position} has fps = {block.fps}, which vLLM sets for all videos alike: {setting}")
    part = media_part(data.kind, _url(data, position))
    if isinstance(block, ImageBlock) and block.detail:
        part["image_url"]["detail"] = block.detail
    return part


def _url(data: _Data, position: str) -> str:
    """The URL for vLLM to load: a web address, or the data itself as a data URL."""
    if data.url is not None:
        return data.url
    if data.content is not None:
        return data_url(_checked_type(data.mime_type, data, "its data", position), data.content)
    if data.file is None:
        raise InvalidInputError(f"{position} has no {data.kind} in it: give its {_FIELDS[data.kind][0]}, path or url")
    if data.mime_type is not None:
        mime_type = _checked_type(data.mime_type, data, str(data.file), position)  # before anything is read
        return data_url(mime_type, read_file(data.file, position))
    content = read_file(data.file, position)
    return data_url(_checked_type(_guessed(content), data, str(data.file), position), content)


def _checked_type(mime_type: str | None, data: _Data, what: str, position: str) -> str:
    """The type, if that is one of the block's kind: nothing else is sent away by mistake."""
    if mime_type and is_of_kind(mime_type, data.kind):
        return mime_type
    seems = f"seems to be {mime_type}" if mime_type else "has no recognisable type"
    raise InvalidInputError(f"{position} is of type {data.kind!r}, but {what} {seems}: give its {data.type_field}")


# ---- documents


def _document_part(block: DocumentBlock, data: _Data, position: str) -> dict[str, Any]:
    if data.url is not None and data.url[:5].lower() == "data:":
        data = _from_data_url(data.url, data.mime_type, position)
    kind = (data.mime_type or "").partition("/")[0]
    if kind in MEDIA_KINDS:
        return media_part(kind, _url(replace(data, kind=kind), position))
    heading = [] if block.title in (None, "", _CORES_TITLE) else [str(block.title)]
    return {"type": "text", "text": "\n".join([*heading, _document_text(data, position)])}


def _from_data_url(url: str, mime_type: str | None, position: str) -> _Data:
    header, comma, encoded = url[5:].partition(",")
    content = unquote_to_bytes(encoded)
    if header.endswith(";base64"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as exc:
            raise InvalidInputError(f"{position}.url has data that is not base64: {exc}") from exc
    if not comma or not content:
        raise InvalidInputError(f"{position}.url is a data URL without data: {url!r:.40}")
    declared = mime_type or header.partition(";")[0]
    return _Data("document", "document_mimetype", declared or _guessed(content), content=content)


def _document_text(data: _Data, position: str) -> str:
    if data.url is not None:
        raise InvalidInputError(
            f"{position} is a document at {data.url!r:.200}, and vLLM does not fetch documents: give its data"
        )
    if data.content is None and data.file is None:
        raise InvalidInputError(f"{position} has no document in it: give its data or path")
    if data.mime_type and not _is_text(data.mime_type):
        advice = "send its text, or its pages as images"
        raise InvalidInputError(
            f"{position} is a document of type {data.mime_type}, and vLLM takes only text: {advice}"
        )
    if data.content is not None:
        return as_text(data.content, position)
    assert data.file is not None
    if data.mime_type is None:
        raise InvalidInputError(
            f"{position} names {data.file}, which has no recognisable type: give its document_mimetype"
        )
    return as_text(read_file(data.file, position), position)


def _is_text(mime_type: str) -> bool:
    major, _, minor = mime_type.partition(";")[0].strip().lower().partition("/")
    return major == "text" or (major == "application" and (minor in _TEXTS or minor.endswith(("+json", "+xml"))))
