"""Who may ask: by the Host that a browser names, the page that it comes from, and the API key. Before anything else."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared_engine.gateway.allowances import HEADERS, Allowance, Allowances, is_counted
from shared_engine.gateway.config import GatewayConfig, Key
from shared_engine.gateway.page.files import FILES
from shared_engine.gateway.refusals import RefusedError
from shared_engine.machine import sockets

OPEN = frozenset(("/health", "/ready", *FILES))
"""What needs no key: whoever looks after a service has none, and the files of the page are the same everywhere; what
they show they ask for with a key.
"""
MAX_HEAD_BYTES = 64 << 10
_LENGTHS = {b"content-length", b"transfer-encoding"}
_PAGES = frozenset(("/", "/docs"))
"""What may be opened by a link on another page: they show nothing, and start nothing, by themselves."""
_SHOWN_TO_PAGES = ", ".join(("Retry-After", "x-request-id", "x-should-retry", *HEADERS))


class Guard:
    """Refuses what may not ask, and tells pages that may.

    Args:
        config: what holds now.
        is_loopback: the address is one of this machine alone.
    """

    def __init__(self, app: ASGIApp, config: Callable[[], GatewayConfig], *, is_loopback: bool) -> None:
        self._app = app
        self._config = config
        self._is_loopback = is_loopback
        self._allowances = Allowances()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers, config = _by_name(scope), self._config()
        origin = headers.get("origin")
        is_named = origin is not None and origin in config.fields.cors_origins
        shown = _for_pages(origin) if is_named and origin else {}
        taken: Allowance | None = None
        answer = self._app
        try:
            check_head(scope)
            check_host(headers.get("host"), config.fields.allowed_hosts, is_loopback=self._is_loopback)
            if not is_named:
                check_page(scope["method"], scope["path"], headers)
            if is_named and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                answer = _preflight(headers)  # which a browser sends without a key
            elif scope["path"] not in OPEN:
                key = key_of(headers, config.keys)
                # Without keys: who is on this machine; of others nobody, whoever may ask a model.
                is_admin = self._is_loopback if key is None else key.is_admin
                scope.setdefault("state", {}).update(key=key, is_admin=is_admin, config=config, headers=headers)
                if key is not None and is_counted(scope["method"], scope["path"]):
                    allowance = self._allowances.of(key)
                    shown = shown | allowance.take(key)
                    taken = allowance
        except RefusedError as refusal:
            answer = refusal.response(scope["path"])
        try:
            await answer(scope, receive, _with_headers(send, shown) if shown else send)
        finally:
            if taken is not None:
                taken.give_back()


def _by_name(scope: Scope) -> dict[str, str]:
    """The headers; of several with one name the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def check_head(scope: Scope) -> None:
    """
    Raises:
        RefusedError: it is too long, or gives its body two lengths: a proxy before this may have taken the other one.
    """
    size, names = len(scope["path"]) + len(scope["query_string"]), set()
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        names.add(name)
    if size > MAX_HEAD_BYTES:
        raise RefusedError(431, f"address and headers are longer than {MAX_HEAD_BYTES} bytes", "head_too_long")
    if names >= _LENGTHS:
        told = "give Content-Length or Transfer-Encoding, not both"
        raise RefusedError(400, told, "invalid_http", headers={"Connection": "close"})


def host_of(value: str) -> str:
    """The name in a Host header, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower().rstrip(".")


def check_host(value: str | None, allowed: Sequence[str], *, is_loopback: bool) -> None:
    """Refuse a page in a browser that reaches this address by a name of its own (DNS rebinding).

    Names of loopback pass: nobody can have them lead elsewhere. So does a request without a Host, which is HTTP/1.0: no
    browser sends one, HAProxy's health check does.

    Raises:
        RefusedError: it is called by a name that is not its.
    """
    if value is None or (not is_loopback and not allowed):
        return
    name = host_of(value)
    if not (is_loopback and sockets.is_loopback(name)) and name not in map(str.lower, allowed):
        raise RefusedError(403, "the Host header names another host; see allowed_hosts", "host_not_allowed")


def check_page(method: str, path: str, headers: Mapping[str, str]) -> None:
    """Refuse what a page of another place has a browser ask for, as by the address of an image.

    Raises:
        RefusedError: it comes from such a page.
    """
    origin = headers.get("origin")
    if origin is not None:
        check_origin(origin, headers.get("host", ""))
    elif headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if not (is_link and path in _PAGES):
            raise _of_another_page()


def check_origin(origin: str, host: str) -> None:
    """Refuse a page of another place: it could ask, though it can't read the answer.

    Raises:
        RefusedError: it is none of this address.
    """
    try:
        parts = urlsplit(origin)
        is_own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    except ValueError:
        is_own = False
    if not is_own:
        raise _of_another_page()


def _of_another_page() -> RefusedError:
    return RefusedError(403, "pages of this origin may not ask; see cors_origins", "origin_not_allowed")


def key_of(headers: Mapping[str, str], keys: Sequence[Key]) -> Key | None:
    """The key of a request; None where none are asked for. All are compared, each in constant time.

    Raises:
        RefusedError: it has none, or another one.
    """
    if not keys:
        return None
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")  # Anthropic's clients
    digest, found = _digest(given), None
    for key in keys:
        if hmac.compare_digest(digest, _digest(key.secret)):
            found = key
    if found is None:
        raise RefusedError(
            401, "give an API key: Authorization: Bearer ...", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
    return found


def _digest(secret: str) -> bytes:
    """Of equal length, whatever the secret's."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _preflight(headers: Mapping[str, str]) -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
            "Access-Control-Max-Age": "600",
        },
    )


def _for_pages(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _SHOWN_TO_PAGES, "Vary": "Origin"}


def _with_headers(send: Send, shown: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in shown.items():
                if name == "Vary":
                    headers.add_vary_header(value)
                else:
                    headers[name] = value
        await send(message)

    return sending
