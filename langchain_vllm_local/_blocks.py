"""One content block of a message -> the content part that vLLM takes.

LangChain's standard blocks, those of its version 0, OpenAI's, vLLM's own, and Anthropic's images. What LangChain's
blocks say is in a local file is read here, since the server may be on another machine; OpenAI's go as they are. Only
the server knows whether the model takes images or sound: see shared_engine.adapting.media_errors.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine.adapting.local_files import file_of, mime_type_of, read_file
from shared_engine.adapting.media_parts import MEDIA_KINDS, as_text, data_url, is_of_kind, media_part
from shared_engine.errors import InvalidInputError

_EXAMPLES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}
_MEDIA_URLS = tuple(f"{kind}_url" for kind in MEDIA_KINDS)
_DATA = (*MEDIA_KINDS, "text-plain", "file")
# vLLM's own blocks for embeddings computed elsewhere, and blocks of other providers' answers.
_SENT_AS_THEY_ARE = ("image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "tool_reference", "refusal")
_KNOWN = ("text", *_DATA, *_MEDIA_URLS, "input_audio", *_SENT_AS_THEY_ARE)

_MIME_TYPES = ("mime_type", "media_type", "mimeType")  # LangChain's, Anthropic's, MCP's

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)

Block = Mapping[Any, Any]


def to_openai_part(block: str | Block, position: str, *, reads_files: bool = True) -> dict[str, Any]:
    """The block as /v1/chat/completions of vLLM takes it.

    Args:
        position: where the block is, for errors: ``messages[0].content[1]``.
        reads_files: an image, sound or video may be a file of this machine.

    Raises:
        InvalidInputError: it can't be sent, or names a file that can't be read.
    """
    if isinstance(block, str):
        return {"type": "text", "text": block}
    block = unwrapped(block)
    kind = block.get("type") or next((name for name in _MEDIA_URLS if name in block), None)
    if kind == "text":
        return {"type": "text", "text": block.get("text", "")}
    if kind in _MEDIA_URLS:
        return {**block, "type": kind, kind: _url_object(block, kind, position)}
    if kind == "input_audio":
        return _input_audio(block, position)
    if kind in _SENT_AS_THEY_ARE:
        return dict(block)
    if kind in _DATA:
        data = _parse(block, kind, position)
        if data.file is not None:
            _check_file_may_be_read(data, position, reads_files)
        return _data_part(data, position)
    raise InvalidInputError(f"{position} is a block of type {kind!r}; known: {', '.join(_KNOWN)}")


def names_file(block: object) -> bool:
    """Whether the block names a file of this machine."""
    if not isinstance(block, Mapping):
        return False
    block = unwrapped(block)
    return block.get("type") in _DATA and _file_place(_fields(block)) is not None


def unwrapped(block: Block) -> Block:
    """Core puts a block that it does not know into one of type ``non_standard``."""
    inside = block.get("value") if block.get("type") == "non_standard" else None
    return unwrapped(inside) if isinstance(inside, Mapping) else block


# ---- OpenAI's and vLLM's blocks


def _url_object(block: Block, kind: str, position: str) -> dict[str, Any] | None:
    """``{"url": ...}``: vLLM refuses the bare URL that OpenAI and LangChain take too."""
    value = block.get(kind)
    if isinstance(value, str):
        value = {"url": value}
    if isinstance(value, Mapping) and value.get("url"):
        return dict(value)
    if block.get("uuid"):
        return None  # what vLLM has seen under that name before
    raise InvalidInputError(f"{position} has no URL: a block of type {kind!r} is {{{kind!r}: {{'url': ...}}}}")


def _input_audio(block: Block, position: str) -> dict[str, Any]:
    """As ``audio_url``, into which vLLM turns it too, but only for wav and mp3: others it refuses."""
    audio = block.get("input_audio")
    if isinstance(audio, Mapping) and audio.get("data") and audio.get("format"):
        return media_part("audio", f"data:audio/{audio['format']};base64,{audio['data']}", block.get("uuid"))
    if block.get("uuid"):
        return dict(block)
    raise InvalidInputError(f"{position}.input_audio needs data, in base64, and its format, such as 'wav'")


# ---- LangChain's blocks, and Anthropic's


@dataclass(frozen=True)
class _Data:
    """The fields of a block, in any of the forms. At most one of file, url, base64, text and file_id is used."""

    kind: str
    mime_type: str | None
    file: Path | None
    url: Any
    base64: Any
    text: Any
    file_id: Any
    uuid: Any
    heading: tuple[str, ...]


def _parse(block: Block, kind: str, position: str) -> _Data:
    fields = _fields(block)
    is_v0_text = block.get("source_type") == "text"
    url, place = fields.get("url"), _file_place(fields)
    file = None if place is None else file_of(place, position)
    mime_type = next((fields[name] for name in _MIME_TYPES if fields.get(name)), None)
    mime_type = mime_type or (mime_type_of(file) if file else None)
    return _Data(
        kind=_kind_of_file(mime_type or "", is_v0_text) if kind == "file" else kind,
        mime_type=mime_type,
        file=file,
        url=url,
        base64=fields.get("base64", fields.get("data")),
        text=fields.get("text", url if is_v0_text else None),  # core puts the text of version 0 under url
        file_id=fields.get("file_id", block.get("id") if block.get("source_type") == "id" else None),
        uuid=fields.get("uuid", (block.get("extras") or {}).get("uuid")),
        heading=tuple(str(fields[name]) for name in ("title", "context") if fields.get(name)),
    )


def _fields(block: Block) -> dict[Any, Any]:
    source = block.get("source")  # Anthropic's
    return {**source, **block} if isinstance(source, Mapping) else dict(block)


def _file_place(fields: Block) -> Any:
    """The path, or ``file:`` URL, of the local file that a block names; None where it names none."""
    url = fields.get("url")
    is_file_url = isinstance(url, os.PathLike) or (isinstance(url, str) and url[:5].lower() == "file:")
    return fields.get("path") or (url if is_file_url else None)


def _check_file_may_be_read(data: _Data, position: str, reads_files: bool) -> None:
    """Messages come from tools and from other machines too, and must not have files of this one sent away.

    Raises:
        InvalidInputError: the file is not one of a human's image, sound or video.
    """
    if not reads_files:
        raise InvalidInputError(
            f"{position} names the file {data.file}; only a HumanMessage's are read: send it as base64"
        )
    if data.kind == "text-plain":
        raise InvalidInputError(
            f"{position} names the file {data.file}; send its text: {{'type': 'text', 'text': ...}}"
        )


def _kind_of_file(mime_type: str, is_v0_text: bool) -> str:
    major = mime_type.partition("/")[0]
    if is_v0_text or major == "text":
        return "text-plain"
    return major if major in MEDIA_KINDS else "file"


def _data_part(data: _Data, position: str) -> dict[str, Any]:
    if data.kind == "text-plain":
        return {"type": "text", "text": "\n".join((*data.heading, _text(data, position)))}
    if data.kind == "file":
        kind = "'file'" if data.mime_type is None else f"'file' ({data.mime_type})"
        advice = "send its text, or its pages as images"
        raise InvalidInputError(f"{position} is a block of type {kind}, and vLLM does not take files: {advice}")
    return media_part(data.kind, _url(data, position), data.uuid)


def _url(data: _Data, position: str) -> str | None:
    """The URL for vLLM to load; None if vLLM has it already, under its uuid."""
    if data.file is not None:
        return data_url(_type_of_file(data.file, data, position), read_file(data.file, position))
    if data.url is not None:
        if isinstance(data.url, str) and _SCHEME.match(data.url):
            return data.url
        raise InvalidInputError(
            f"{position} has the url {data.url!r:.80}, which is not a URL: name a local file by its path"
        )
    if data.base64 is not None:
        if not data.mime_type:
            example = _EXAMPLES[data.kind]
            raise InvalidInputError(f"{position} has base64 data, which needs its mime_type, such as {example!r}")
        return f"data:{data.mime_type};base64,{_checked_base64(data.base64, position)}"
    if data.uuid is not None:
        return None
    if data.file_id is not None:
        raise InvalidInputError(
            f"{position} names a stored file, and vLLM stores no files: give its url, base64 or path"
        )
    raise InvalidInputError(f"{position} has no {data.kind} in it: give its url, base64 or path")


def _type_of_file(file: Path, data: _Data, position: str) -> str:
    """Its type, if that is one of the block's kind: nothing else is read and sent away by mistake."""
    found = data.mime_type or ""
    if is_of_kind(found, data.kind):
        return found
    seems = f"seems to be {found}" if found else "has no recognisable type"
    raise InvalidInputError(f"{position} is of type {data.kind!r}, but {file} {seems}: give its mime_type")


def _text(data: _Data, position: str) -> str:
    if isinstance(data.text, str):
        return data.text
    if data.base64 is None:
        raise InvalidInputError(f"{position} has no text in it: give text or base64; vLLM does not fetch text")
    try:
        content = base64.b64decode(_checked_base64(data.base64, position), validate=True)
    except binascii.Error as exc:
        raise InvalidInputError(f"{position} has data that is not base64: {exc}") from exc
    return as_text(content, position)


def _checked_base64(data: object, position: str) -> str:
    if isinstance(data, str) and data:
        return data
    raise InvalidInputError(f"{position} must have its data as a base64 string, got {type(data).__name__} {data!r:.40}")
