"""Which way a request has taken in vLLM's application: see shared_engine/launcher/shortcut.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from shared_engine import Engine

SHORT, WHOLE = "application/json", "application/json; charset=utf-8"
"""Content types: JSON by either way."""


@contextmanager
def socket_client(engine: Engine) -> Iterator[httpx.Client]:
    """Asks the engine's socket whatever it is told to."""
    engine.warmup()
    transport = httpx.HTTPTransport(uds=engine.status().socket)
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client


def whole_ways(client: httpx.Client) -> float:
    """How many requests have gone through all of vLLM's middlewares, one of which counts them."""
    counts = re.findall(r"^http_requests_total\{[^}]*\} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, counts))


def by_both_ways(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[httpx.Response, httpx.Response, bool]:
    """The answers, and whether the first one came by the short way."""
    body = {"model": client.get("/v1/models").json()["data"][0]["id"], **body}
    before = whole_ways(client)
    first = client.post(path, json=body, headers={"content-type": SHORT})
    between = whole_ways(client)
    second = client.post(path, json=body, headers={"content-type": WHOLE})
    assert whole_ways(client) > between
    return first, second, between == before
