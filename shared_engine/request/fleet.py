"""The servers of a fleet: which there are, for all objects of a process, and how they come and go."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping
from typing import Any

from shared_engine.errors import RequestError, SettingsError
from shared_engine.request.fleet_sources import Source, source_of
from shared_engine.request.members import Members
from shared_engine.settings import EngineSettings

logger = logging.getLogger(__name__)


class Fleet(Members):
    """The servers of a fleet."""

    def __init__(self, weights: Mapping[str, float], source: Source | None = None) -> None:
        super().__init__()
        self.came_later: dict[str, EngineSettings] = {}
        self._source = source
        self._listed: set[str] = set()
        self._look_at = 0.0
        for url, weight in weights.items():
            self.pool.add(url, weight)

    def add(self, base_url: str, *, weight: float = 1.0, api_key: str | None = None) -> None:
        """Send requests to one more server, from now on.

        Args:
            weight: its share of the requests, against the others'.
            api_key: of that server; None for none.

        Raises:
            SettingsError: the address is not valid, or a member already; or the weight is not above 0.
        """
        settings = EngineSettings(base_url=base_url, api_key=api_key)
        with self.guard:
            try:
                self.pool.add(str(settings.base_url), weight)
            except ValueError as exc:
                raise SettingsError(str(exc)) from None
            self.came_later[str(settings.base_url)] = settings

    def drain(self, base_url: str) -> None:
        """Send a server nothing more; what it has goes on. ``status().members`` tells how much that is.

        Raises:
            SettingsError: it is no member.
        """
        url = root_of(base_url)
        with self.guard:
            self._check(url)
            self.pool.drain(url)

    def remove(self, base_url: str) -> None:
        """Forget a server; requests that it has go on.

        Raises:
            SettingsError: it is no member.
        """
        url = root_of(base_url)
        with self.guard:
            self._check(url)
            self.pool.remove(url)

    async def refresh(self) -> None:
        """Look at the list of servers again, if there is one and it is time.

        Raises:
            RequestError: it can't be read, and never could be: else what it had stays.
        """
        if self._source is None or time.monotonic() < self._look_at:
            return
        if self._listed:
            self._look_at = time.monotonic() + self._source.look_s  # of many requests one looks
        try:
            weights = await self._source.weights()
        except RequestError as exc:
            if not self._listed:
                raise
            logger.warning("the fleet keeps its servers: %s", exc)
            return
        with self.guard:
            for url in self._listed - weights.keys():
                if url in self.pool.members:
                    self.pool.remove(url)
            for url, weight in weights.items():
                known = self.pool.members.get(url)
                if known is not None and known.weight != weight:
                    self.pool.remove(url)
                if url not in self.pool.members:
                    self.pool.add(url, weight)
            self._listed = set(weights)
        self._look_at = time.monotonic() + self._source.look_s

    def _check(self, url: str) -> None:
        if url not in self.pool.members:
            raise SettingsError(f"{url} is not a member of the fleet: {', '.join(self.pool.members) or 'it has none'}")


_fleets: dict[Any, Fleet] = {}


def fleet_of(settings: EngineSettings) -> Fleet:
    """This process's one of these servers: what is in flight counts over all objects."""
    if not isinstance(settings.base_url, tuple):
        url = str(settings.base_url)
        return _fleets.get(url) or _fleets.setdefault(url, Fleet({}, source_of(url)))
    weights = dict(zip(settings.base_url, settings.member_weights or itertools.repeat(1.0), strict=False))
    key = tuple(sorted(weights.items()))
    return _fleets.get(key) or _fleets.setdefault(key, Fleet(weights))


def root_of(base_url: str) -> str:
    """As a member is named."""
    return str(EngineSettings(base_url=base_url, api_key=None, basic_auth=None).base_url)
