"""Images, audio and video in a request: where they stand, how many, how large, and from where they may be. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from shared_engine.gateway.config_fields import FileFields
from shared_engine.gateway.refusals import RefusedError

_URLS = ("image_url", "audio_url", "video_url", "file_url")
_DATA = ("input_audio", "source")
_BARE = ("image", "images", "audio", "audios", "video", "videos")
"""URLs too, in ``/v2/embed`` and its like; in other places these are words for people."""
_MARKS = (b"_url", b"source", b"image", b"audio", b"video", b"\\u")
"""One of them is in each body that has media; names in JSON may be written with escapes."""
_NO_MEDIA = frozenset((
    "tools", "functions", "tool_choice", "arguments", "response_format", "structured_outputs", "output_config", "text",
    "metadata", "chat_template_kwargs", "state", "questions",
))  # fmt: skip
"""Any JSON may be in these, wherever they are: vLLM takes it as text, and fetches nothing from there. What is not
named here may have media: another release of vLLM, or another server, fetches from more places."""
_DOCUMENTS = ("documents", "document")
"""In these too, but for the ``content`` of a document that is ranked."""
_IS_URL = re.compile(r"\s*(?:data:|file:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_SHOWN = 100


@dataclass(frozen=True)
class Medium:
    """One of them, at its place.

    Attributes:
        holder: what has it, under ``at``.
        text: a URL, or its data in base64.
    """

    holder: Any = field(repr=False)
    at: str | int
    text: str = field(repr=False)

    @property
    def is_data(self) -> bool:
        return self.at == "data" or self.text.lstrip()[:5].lower() == "data:"

    @property
    def size(self) -> int:
        """Bytes of data."""
        return (len(self.text) - self.text.find(",", 0, 200) - 1) * 3 // 4 - self.text.count("=", -2)

    def put(self, kind: str, base64: str) -> None:
        """The data in place of its URL."""
        if self.at == "url" and self.holder.get("type") == "url":  # Anthropic's form
            del self.holder["url"]
            self.holder.update(type="base64", media_type=kind, data=base64)
        else:
            self.holder[self.at] = f"data:{kind};base64,{base64}"


def may_have_media(body: bytes) -> bool:
    """False where there can't be any."""
    return any(mark in body for mark in _MARKS)


def media_in(field: str, value: Any) -> tuple[dict[str, Any], list[Medium]]:
    """The media of one field of a request, and the field by its name, which ``Medium.put`` changes."""
    holder = {field: value}
    return holder, list(_found(holder))


def check_media(media: Iterable[Medium], rules: FileFields) -> dict[str, list[Medium]]:
    """What is to be fetched: the places of each URL.

    Raises:
        RefusedError: there are too many, one is too large, or nothing may be fetched from there.
    """
    urls: dict[str, list[Medium]] = {}
    for number, medium in enumerate(media, 1):
        if number > rules.max_media:
            told = f"more than max_media = {rules.max_media} images, sounds and videos in one request"
            raise RefusedError(400, told, "too_many_media")
        if not medium.is_data:
            url_of(medium.text, rules.media_domains)
            urls.setdefault(medium.text, []).append(medium)
        elif medium.size > rules.max_media_bytes:
            raise too_large(rules)
    return urls


def url_of(text: str, domains: Collection[str]) -> URL:
    """The URL, read once: what is checked is what is asked.

    Raises:
        RefusedError: nothing may be fetched from there.
    """
    text = text.strip()
    try:
        url = URL(text, encoded=text.isascii())
        # User and backslash: other readers of URLs may see another host there.
        is_plain = url.raw_user is None and not re.search(r"[\x00-\x20\x7f\\]", text)
        is_http = url.scheme in ("http", "https") and url.port is not None
        is_allowed = is_plain and is_http and _is_named(url.raw_host or "", domains)
    except ValueError:
        is_allowed = False
    if not is_allowed:
        told = f"{text[:_SHOWN]!r}: nothing is fetched from there: send it as data:, or see media_domains"
        raise RefusedError(400, told, "url_not_allowed")
    return url


def too_large(rules: FileFields) -> RefusedError:
    told = f"an image, a sound or a video is larger than max_media_bytes = {rules.max_media_bytes}"
    return RefusedError(413, told, "media_too_large")


def _is_named(host: str, domains: Collection[str]) -> bool:
    host = host.lower().rstrip(".")
    return bool(host) and any(
        name == "*" or host == name or (name.startswith("*.") and host.endswith(name[1:]))
        for name in (domain.lower() for domain in domains)
    )


def _found(value: Any) -> Iterator[Medium]:
    open_ = [value]
    while open_:
        value = open_.pop()
        if isinstance(value, list):
            open_.extend(reversed(value))
        elif isinstance(value, dict):
            for name, each in value.items():
                yield from _at(value, name, each)
            open_.extend(reversed([_followed(value, name) for name in value]))


def _followed(holder: dict[str, Any], name: str) -> Any:
    """What may have media of a field; None where nothing does."""
    value = holder[name]
    if name in _NO_MEDIA or (name == "input" and str(holder.get("type")).endswith("tool_use")):
        return None
    if name in _DOCUMENTS:
        documents = value if isinstance(value, list) else [value]
        return [each.get("content") for each in documents if isinstance(each, dict)]
    return value


def _at(holder: dict[str, Any], name: str, value: Any) -> Iterator[Medium]:
    if isinstance(value, dict) and name in (*_URLS, *_DATA, *_BARE):
        for inner in ("url", "data"):
            if isinstance(value.get(inner), str) and (inner == "url" or name in _DATA):
                yield Medium(value, inner, value[inner])
    elif isinstance(value, str) and (name in _URLS or (name in _BARE and _IS_URL.match(value))):
        yield Medium(holder, name, value)
    elif isinstance(value, list) and name in (*_URLS, *_BARE):
        for index, each in enumerate(value):
            if isinstance(each, str) and (name in _URLS or _IS_URL.match(each)):
                yield Medium(value, index, each)
