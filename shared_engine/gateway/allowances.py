"""What one API key may ask for: requests a minute, and requests at once."""

from __future__ import annotations

import math
import re
import time

from shared_engine.gateway.config import Key
from shared_engine.gateway.refusals import RefusedError
from shared_engine.request.routes import RESPONSES

MINUTE_S = 60.0
BUSY_AGAIN_S = 1
_READS = ("GET", "HEAD", "OPTIONS")
_PASSED = re.compile(r"/v[12]/(?!models(/|$))")
_ENDS = re.compile(rf"/api/v1/inference/(unload|requests/[^/]+/cancel)|{RESPONSES}/[^/]+/cancel")
"""Ways to have less to do, which nobody is to wait for."""


def is_counted(method: str, path: str) -> bool:
    """True of a request that may start work, such as one to a model; False of one that only looks at the gateway."""
    return bool(_PASSED.match(path)) if method in _READS else not _ENDS.fullmatch(path)


class Allowance:
    """What one key has used of it. The limits themselves may change from one request to the next.

    All of a minute's requests may come at once; each is given back after its part of the minute.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._unused_at = 0.0
        """When all of a minute's requests will have been given back."""

    def take(self, key: Key) -> dict[str, str]:
        """Count one request, whatever becomes of it, until ``give_back``; the headers that say what is left.

        Raises:
            RefusedError: it is one too many. It is not counted.
        """
        if key.concurrency_limit is not None and self._in_flight >= key.concurrency_limit:
            told = f"the key {key.name!r} has {self._in_flight} requests in flight, which is its limit"
            raise RefusedError(429, told, "concurrency_limit_exceeded", retry_after_s=BUSY_AGAIN_S)
        headers = {} if key.requests_per_minute is None else self._counted(key, key.requests_per_minute)
        self._in_flight += 1
        return headers

    def give_back(self) -> None:
        """One request has ended."""
        self._in_flight -= 1

    def _counted(self, key: Key, limit: int) -> dict[str, str]:
        now, each_s = time.monotonic(), MINUTE_S / limit
        used_s = max(self._unused_at - now, 0.0)
        wait_s = used_s + each_s - MINUTE_S
        if wait_s > each_s / 1000:  # what adding up has rounded
            told = f"the key {key.name!r} may send {limit} requests a minute; try again in {math.ceil(wait_s)} s"
            headers = _told(limit, 0, used_s)
            raise RefusedError(429, told, "rate_limit_exceeded", retry_after_s=wait_s, headers=headers)
        used_s += each_s
        self._unused_at = now + used_s
        return _told(limit, limit - math.ceil(used_s / each_s - 0.001), used_s)


class Allowances:
    """Those of all keys, by name: what was used stays so when the configuration is read again."""

    def __init__(self) -> None:
        self._by_name: dict[str, Allowance] = {}

    def of(self, key: Key) -> Allowance:
        return self._by_name.setdefault(key.name, Allowance())


def _told(limit: int, left: int, reset_s: float) -> dict[str, str]:
    """As OpenAI names them."""
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(left),
        "x-ratelimit-reset-requests": f"{math.ceil(reset_s)}s",
    }


HEADERS = tuple(_told(0, 0, 0))
