"""A WSGI app for gunicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.others.apps.shared import answer


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    text = answer()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
