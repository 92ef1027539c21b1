"""The files of the page, and how a browser is to treat them. They are the same in every installation: they tell nothing
of this one, so that they need no key; what they ask for does."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("static")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts and styles are files of ours, requests go to where the page came from, and no text becomes HTML.
CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 mostly
}
PAGES = {"index.html": "/", "docs.html": "/docs"}
FILES = {
    PAGES.get(file.name, f"/page/{file.name}"): file for file in sorted(_FOLDER.iterdir()) if file.suffix in _TYPES
}
"""Each file by its address."""


def routes() -> list[Route]:
    """One for each file."""
    return [Route(path, _Sent(file).answer, methods=["GET"], include_in_schema=False) for path, file in FILES.items()]


class _Sent:
    """A file, read once."""

    def __init__(self, file: Path) -> None:
        self._body = file.read_bytes()
        self._type = _TYPES[file.suffix]
        self._headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'}

    async def answer(self, request: Request) -> Response:
        if self._headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, headers=self._headers, media_type=self._type)
