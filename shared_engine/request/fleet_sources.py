"""Where a fleet's servers are listed, other than in the settings: a file that is watched, or a DNS name."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import urlsplit

from shared_engine.addresses import DNS, FILE
from shared_engine.errors import RequestError, SettingsError
from shared_engine.request.threads import in_a_thread
from shared_engine.settings import EngineSettings


class Source(ABC):
    """A list of servers.

    Attributes:
        look_s: seconds from one look to the next.
    """

    look_s: float

    @abstractmethod
    async def weights(self) -> dict[str, float]:
        """The servers' URLs, and the weight of each.

        Raises:
            RequestError: it can't be read, or names no server.
        """


class FileSource(Source):
    """Lines of ``URL`` or ``URL WEIGHT``; ``#`` begins a comment."""

    look_s = 1.0

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def weights(self) -> dict[str, float]:
        try:
            text = await in_a_thread(self._path.read_text)
        except (OSError, UnicodeDecodeError) as exc:
            raise RequestError(f"the list of servers {self._path} can't be read: {exc}") from exc
        found: dict[str, float] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                settings = EngineSettings(base_url=words[0], api_key=None)
                weight = float(words[1]) if len(words) > 1 else 1.0
                if settings.is_fleet or len(words) > 2 or not weight > 0:
                    raise ValueError("must be a URL, or a URL and a weight above 0")
            except (SettingsError, ValueError) as exc:
                raise RequestError(f"{self._path}, line {number}: {line.strip()!r}: {exc}") from exc
            found[str(settings.base_url)] = weight
        if not found:
            raise RequestError(f"the list of servers {self._path} names none")
        return found


class DnsSource(Source):
    """Every address that a name has, as a headless service of Kubernetes has those of its pods."""

    look_s = 10.0

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port, self._path = parts.hostname, parts.port or 80, parts.path

    async def weights(self) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise RequestError(f"the name {self._host} has no address: {exc}") from exc
        hosts = {f"[{address[0]}]" if family == socket.AF_INET6 else address[0] for family, *_, address in found}
        return {f"http://{host}:{self._port}{self._path}": 1.0 for host in sorted(map(str, hosts))}


def source_of(base_url: str) -> Source:
    """The list that such a ``base_url`` names."""
    if base_url.startswith(FILE):
        return FileSource(base_url.removeprefix(FILE))
    return DnsSource(base_url.removeprefix(DNS))
