"""Which proxy requests to a URL go through: the one that was set, else the environment's, read as curl reads it.

aiohttp's ``trust_env`` would read the environment too, but also send what ~/.netrc holds for the host.
"""

from __future__ import annotations

import re
import urllib.request
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urlsplit

from shared_engine.addresses import NO_PROXY
from shared_engine.errors import SettingsError

_PORTS = {"http": 80, "https": 443}


def proxy_of(url: str, setting: str | None = None) -> str | None:
    """The proxy for requests to ``url``, None for none.

    Args:
        setting: a proxy, which is always used; ``"none"`` for none; None for the environment's (HTTP_PROXY,
            HTTPS_PROXY, ALL_PROXY), which is not used for this machine itself and for what NO_PROXY lists.

    Raises:
        SettingsError: the environment names a kind of proxy that is not supported.
    """
    if setting is not None:
        return None if setting == NO_PROXY else setting
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    if _is_this_machine(host) or is_excluded(host, parts.port or _PORTS.get(parts.scheme), proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SettingsError(
            f"the environment's proxy {shown(proxy)} is not supported: it must be an HTTP proxy; "
            "pass proxy='http://...', or proxy='none' to do without"
        )
    return proxy


def shown(proxy: str) -> str:
    """``proxy`` as it may be shown: without user and password."""
    scheme, _, rest = proxy.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def with_credentials(proxy: str | None, auth: str | None) -> str | None:
    """``proxy`` with ``user:password`` in it, as aiohttp takes them."""
    if proxy is None or auth is None:
        return proxy
    scheme, _, rest = proxy.partition("://")
    user, _, password = auth.partition(":")
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


def is_excluded(host: str, port: int | None, rules: str) -> bool:
    """True when ``rules`` (NO_PROXY) name ``host``.

    A name stands for itself and all names below it, with or without a dot before it; an address for itself, or with
    ``/8`` for a network; ``*`` for all. A port after it (``host:8000``) limits it to that port.
    """
    host = host.lower().rstrip(".")
    return any(_names(rule.lower(), host, port) for rule in re.split(r"[\s,]+", rules) if rule)


def _names(rule: str, host: str, port: int | None) -> bool:
    if rule == "*":
        return True
    found = re.fullmatch(r"\[(.*)\](?::(\d+))?|([^:]*):(\d+)|(.*)", rule)
    assert found is not None  # the last alternative takes anything
    name = found[1] or found[3] or found[5] or ""
    rule_port = found[2] or found[4]
    if rule_port and int(rule_port) != port:
        return False
    address = _address(host)
    if address is None:
        name = name.strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return address in ip_network(name, strict=False)
    except ValueError:
        return False


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    if address is None:
        return f".{host.lower().rstrip('.')}".endswith(".localhost")
    return address.is_loopback


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
