"""What the URLs of a request name is fetched here, and passed on as data: a model's server fetches nothing.

So the address that is checked is the one that is connected to, whatever a name's server says the next time it is asked.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import ipaddress
import logging
import re
import socket
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from shared_engine.gateway.config_fields import FileFields
from shared_engine.gateway.media import Medium, check_media, may_have_media, media_in, too_large, url_of
from shared_engine.gateway.refusals import RefusedError

MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_ANY_KIND = "application/octet-stream"
_KIND = re.compile(r"(?:image|audio|video)/[a-z0-9.+-]+|application/(?:octet-stream|ogg)|binary/octet-stream")
_FRAMES = "video/jpeg"
"""Means images in base64 to vLLM, not a file."""
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_PIECE = 64 << 10
_SHOWN = 100
_HEADERS = {"Accept": "image/*, audio/*, video/*", "Accept-Encoding": "identity", "User-Agent": "vllm-local"}
logger = logging.getLogger(__name__)


async def inlined(body: bytes, rules: FileFields) -> bytes:
    """A request's body (JSON; another one as it is), with the data of its images, sounds and videos in place of URLs.

    Raises:
        RefusedError: they are too many or too large, or something could not be fetched, or may not.
    """
    if not (body.lstrip()[:1] == b"{" and may_have_media(body)):
        return body
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        found = {name: media_in(name, msgspec.json.decode(raw)) for name, raw in fields.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RefusedError(400, f"the body is not a JSON object: {exc}", "invalid_json") from None
    urls = check_media((medium for _, media in found.values() for medium in media), rules)
    if not urls:
        return body
    await _put(urls, rules, rules.max_body_bytes - len(body))
    for name, (holder, media) in found.items():
        if media:
            fields[name] = msgspec.Raw(msgspec.json.encode(holder[name]))
    return msgspec.json.encode(fields)


def is_public(address: str) -> bool:
    """True for an address of the public Internet; False for what is none, or leads elsewhere from inside."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return ip in _GLOBAL_IPV6 and ip.is_global and ip.sixtofour is None and ip.teredo is None
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _put(urls: dict[str, list[Medium]], rules: FileFields, left: int) -> None:
    """
    Args:
        left: bytes that they may have together.
    """
    connector = aiohttp.TCPConnector(limit=8, use_dns_cache=False, socket_factory=lambda info: _socket(info, rules))
    timeout = aiohttp.ClientTimeout(total=None)
    try:
        async with (
            asyncio.timeout(rules.media_timeout_s),
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            fetching = _Fetching(session, rules, left)
            for text, media in urls.items():
                group.create_task(fetching.put(text, media))
    except TimeoutError:
        told = f"images, sounds and videos were not fetched in media_timeout_s = {rules.media_timeout_s:g}"
        raise RefusedError(400, told, "media_not_fetched") from None
    except ExceptionGroup as group_:
        raise group_.exceptions[0] from None


def _socket(info: Any, rules: FileFields) -> socket.socket:
    """For a connection to an address that has just been looked up.

    Raises:
        OSError: nothing is fetched from there.
    """
    family, kind, protocol, _, (address, *_) = info
    if not is_public(address):
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:  # which would be looked up once more
            raise OSError(errno.EACCES, f"{address!r} is not an address") from None
        if not any(ip in ipaddress.ip_network(network) for network in rules.media_networks):
            raise OSError(errno.EACCES, f"{address} is not a public address; see media_networks")
    return socket.socket(family, kind, protocol)


class _Fetching:
    """The fetching of one request."""

    def __init__(self, session: aiohttp.ClientSession, rules: FileFields, left: int) -> None:
        self._session = session
        self._rules = rules
        self._left = left

    async def put(self, text: str, media: list[Medium]) -> None:
        url = url_of(text, self._rules.media_domains)
        try:
            kind, data = await self._fetched(url)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            # Why is for the log: a client could look around in this network with it. A query has secrets at times.
            logger.info("nothing was fetched from %s: %s", url.raw_host, exc)
            told = f"{text[:_SHOWN]!r} could not be fetched: the gateway's log says why; or send it as data:"
            raise RefusedError(400, told, "media_not_fetched") from None
        encoded = base64.b64encode(data).decode()
        for medium in media:
            medium.put(kind, encoded)

    async def _fetched(self, url: URL) -> tuple[str, bytes]:
        """
        Raises:
            ValueError: there is nothing that could be passed on.
            RefusedError: it is too large.
        """
        for _ in range(MAX_REDIRECTS + 1):
            async with self._session.get(url, headers=_HEADERS, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    url = self._target(url, response)
                elif response.status != 200:
                    raise ValueError(f"it answered {response.status}")
                else:
                    return _kind_of(response), await self._read(response)
        raise ValueError(f"there are more than {MAX_REDIRECTS} redirects")

    def _target(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        target = url.join(URL(response.headers.get("Location", "")))
        try:
            return url_of(str(target), self._rules.media_domains)
        except RefusedError:
            raise ValueError(f"it redirects to {target.raw_host}; see media_domains") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for piece in response.content.iter_chunked(_PIECE):
            data += piece
            self._left -= len(piece) * 4 // 3
            if len(data) > self._rules.max_media_bytes:
                raise too_large(self._rules)
            if self._left < 0:
                told = f"with what its URLs name the body is longer than max_body_bytes = {self._rules.max_body_bytes}"
                raise RefusedError(413, told, "body_too_long")
        return bytes(data)


def _kind_of(response: aiohttp.ClientResponse) -> str:
    kind = response.headers.get("Content-Type", _ANY_KIND).partition(";")[0].strip().lower()
    if not _KIND.fullmatch(kind) or response.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("it is not an image, a sound or a video")
    return _ANY_KIND if kind == _FRAMES else kind
