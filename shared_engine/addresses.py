"""Addresses of servers and proxies, as users write them: with a route, a password, a query, several at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

NO_PROXY = "none"
LOOPBACK = "127.0.0.1"
FILE, DNS = "file://", "dns+"
"""What the ``base_url`` of a fleet begins with whose servers are listed elsewhere."""
_ROUTE = re.compile(r"(/v1)?/(chat/completions|completions|embeddings|rerank|responses)$|/v1(/models)?$")


def server_roots(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, str) and value.startswith(FILE):
        if not value.removeprefix(FILE).startswith("/"):
            raise ValueError("must name a file by its whole path, such as file:///etc/vllm-servers")
        return value
    if isinstance(value, str) and value.startswith(DNS):
        root = str(server_root(value.removeprefix(DNS)))
        if not root.startswith("http://"):
            raise ValueError(
                "must begin with dns+http://: a certificate is of a name, and servers are reached by address"
            )
        return DNS + root
    if not isinstance(value, tuple):
        return server_root(value)
    roots = tuple(server_root(each) or "" for each in value)
    if not roots:
        raise ValueError("is an empty list; it must name a server, such as http://127.0.0.1:8000/v1")
    twice = {root for root in roots if roots.count(root) > 1}
    if twice:
        raise ValueError(f"names {min(twice)} twice")
    return roots[0] if len(roots) == 1 else roots


def server_root(value: str | None) -> str | None:
    """The OpenAI client libraries name the /v1 root, people also a route; vLLM's own routes lie beside /v1."""
    if value is None or http_url(value) is None:
        return None
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.netloc}{_ROUTE.sub('', parts.path.rstrip('/'))}".rstrip("/")


def http_url(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as exc:
        raise ValueError(f"is not a valid URL: {exc}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must start with http:// or https://, such as http://127.0.0.1:8000/v1")
    if not has_host:
        raise ValueError("has no host; it must be like http://127.0.0.1:8000/v1")
    return value


def tcp_address(value: object) -> str | None:
    """``host:port`` to listen on, the port 0 for any that is free; None for no address."""
    if value is None or value is False or value == "":
        return None
    if value is True or str(value).lower() in ("true", "1"):
        return f"{LOOPBACK}:0"
    text = str(value).strip()
    if text.isdigit():
        text = f"{LOOPBACK}:{text}"
    host, port = host_and_port(text)
    if not host or not 0 <= port <= 65535:
        raise ValueError(f"must be an address such as {LOOPBACK}:8000, or True for a free port of this machine")
    return text


def host_and_port(address: str) -> tuple[str, int]:
    """Of ``host:port`` and ``[::1]:port``; port -1 where there is none."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else -1


def proxy_url(value: str | None) -> str | None:
    if value is None or value in ("", NO_PROXY):
        return None if value is None else NO_PROXY
    if value.startswith("socks"):
        raise ValueError("is a SOCKS proxy; only HTTP proxies are supported, such as http://proxy:3128")
    return http_url(value if "://" in value else f"http://{value}")


def user_and_password(value: Any) -> Any:
    for each in value if isinstance(value, tuple) else (value,):
        if each is not None and ":" not in each.get_secret_value():
            raise ValueError("must be user:password")
    return value


def split_urls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what URLs carry: it goes to ``basic_auth``, ``proxy_auth`` and ``default_query``."""
    split = dict(values)
    urls = several(split.get("base_url"))
    if urls is not None and len(urls) == 1:
        split["base_url"], urls = urls[0], None
    if urls is not None:
        bare, credentials_of = zip(*map(without_credentials, urls), strict=True)
        split["base_url"] = bare
        if any(credentials_of):
            split["basic_auth"] = tuple(None if each is None else SecretStr(each) for each in credentials_of)
        keys = split.get("api_key")
        if isinstance(keys, str) and keys.count(",") == len(urls) - 1:
            split["api_key"] = tuple(keys.split(","))
    for url, auth in (("base_url", "basic_auth"), ("proxy", "proxy_auth")):
        if split.get(url) is not None and not (url == "base_url" and urls is not None):
            split[url], credentials = without_credentials(split[url])
            split |= {} if credentials is None else {auth: credentials}
    address, _, query = str(split.get("base_url") or "" if urls is None else "").partition("?")
    if query:
        split["base_url"] = address
        split["default_query"] = {**dict(parse_qsl(query)), **(split.get("default_query") or {})}
    return split


def several(base_url: Any) -> list[Any] | None:
    """The URLs of a fleet; None for one URL, or what is none."""
    if isinstance(base_url, str) and "," in base_url:
        base_url = [each for each in map(str.strip, base_url.split(",")) if each]
    if not isinstance(base_url, list | tuple) or len(base_url) == 0:
        return None
    return list(base_url)


def without_credentials(url: Any) -> tuple[Any, str | None]:
    """A URL, and the ``user:password`` that it carried; also where it is not a valid one: it will be shown."""
    if not isinstance(url, str):
        return url, None
    scheme, separator, rest = url.strip().partition("://") if "://" in url else ("", "", url.strip())
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition(":")[2] if ":" in authority else ""
    if "@" in authority:
        credentials, _, host = authority.rpartition("@")
        bare = host + rest[len(authority) :]
    elif "@" in rest and port and not port.isdigit():  # a password with a slash in it
        credentials, _, bare = rest.rpartition("@")
    else:
        return url.strip(), None
    user, colon, password = credentials.partition(":")
    return scheme + separator + bare, f"{unquote(user)}{colon or ':'}{unquote(password)}"
