"""A consistent hash ring: which member a key prefers, and who is next where that one is out.

A member that comes or goes moves only the keys that are its own.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from hashlib import blake2b

POINTS = 64
"""Of a member of weight 1. Its share of all keys is then within some 25 % of an even one."""


class Ring:
    """Names on a ring of hashes. It is made when it is asked, once for each change."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._points: list[tuple[int, str]] | None = None

    def add(self, name: str, weight: float = 1.0) -> None:
        self._weights[name], self._points = weight, None

    def remove(self, name: str) -> None:
        del self._weights[name]
        self._points = None

    def preferred(self, key: str) -> Iterator[str]:
        """Names in the order in which ``key`` prefers them; each once."""
        if self._points is None:
            self._points = sorted(
                (hash_of(f"{name}#{number}"), name)
                for name, weight in self._weights.items()
                for number in range(max(1, round(POINTS * weight)))
            )
        points = self._points
        start, seen = bisect(points, (hash_of(key), "")), set[str]()
        for offset in range(len(points)):
            name = points[(start + offset) % len(points)][1]
            if name not in seen:
                seen.add(name)
                yield name


def hash_of(text: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
