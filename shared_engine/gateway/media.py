"""Which URLs a request may have its model fetch: none, but from hosts that are named. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlsplit

from shared_engine.gateway.refusals import RefusedError

_PLACES = ("image_url", "audio_url", "video_url", "file_url", "source")


def has_urls(body: bytes) -> bool:
    """False where there can't be any; names in JSON may be written with escapes."""
    return b"_url" in body or b"source" in body or b"\\u" in body


def check_urls(body: Any, domains: Collection[str]) -> None:
    """
    Args:
        domains: hosts from which may be fetched.

    Raises:
        RefusedError: something would be fetched from elsewhere.
    """
    for url in _urls(body):
        if not _is_allowed(url, domains):
            raise RefusedError(
                400,
                f"{url[:100]!r}: nothing is fetched from there: send it as data:, or see media_domains",
                "url_not_allowed",
            )


def _is_allowed(url: str, domains: Collection[str]) -> bool:
    url = url.strip()
    if url[:5].lower() == "data:":
        return True
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:
        return False
    # User and backslash: other readers of URLs may see another host there.
    is_plain = "@" not in parts.netloc and "\\" not in url
    return is_plain and parts.scheme.lower() in ("http", "https") and host in {name.lower() for name in domains}


def _urls(value: Any) -> Iterator[str]:
    open_ = [value]
    while open_:
        value = open_.pop()
        if isinstance(value, list):
            open_.extend(value)
        elif isinstance(value, dict):
            for name, each in value.items():
                if name in _PLACES:
                    found = each.get("url") if isinstance(each, dict) else each
                    if isinstance(found, str) and (name != "source" or isinstance(each, dict)):
                        yield found
                open_.append(each)
