"""Several endpoints in an order: the first one that can start has the requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from shared_engine.errors import EngineNotInstalledError, EngineStartError, RequestError, VLLMError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection, Endpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.tally import EngineName

END_S = 10.0
STEP_BITS = 32

_log = logging.getLogger("shared_engine")


@dataclass(frozen=True)
class FallbackConnection(Connection):
    """A connection that knows which endpoint gave it: requests in flight outlive a step down."""

    endpoint: Endpoint = field(kw_only=True)
    inner: Connection = field(kw_only=True)


@dataclass
class Place:
    """Which of the endpoints is used: one for each set of settings and process, as objects are cheap and many."""

    step: int = 0


class FallbackEndpoint(Endpoint):
    """Goes on to the next endpoint when one can't start, and stays there until ``shutdown``.

    Args:
        modes: what each is, for messages.
        make: an endpoint of a mode.
    """

    def __init__(self, modes: Sequence[str], make: Callable[[str], Endpoint], place: Place) -> None:
        self._modes = modes
        self._endpoints = [make(mode) for mode in modes]
        self._place = place
        self._stepping = threading.Lock()

    @property
    def _current(self) -> Endpoint:
        endpoint = self._endpoints[self._place.step]
        self.awaited, self.sends_done = endpoint.awaited, endpoint.sends_done
        return endpoint

    @property
    def name(self) -> EngineName:
        return self._current.name

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        while True:
            step, endpoint = self._place.step, self._current
            try:
                inner = await endpoint.acquire(headers)
                try:
                    if step + 1 < len(self._endpoints) and self._modes[step] == "remote":
                        await endpoint.check_health(inner.client)
                except BaseException:
                    endpoint.release(inner)
                    raise
            except (EngineStartError, RequestError) as exc:
                if step + 1 == len(self._endpoints):
                    raise
                await self._step_down(step, exc)
            else:
                self.max_model_len = endpoint.max_model_len or self.max_model_len
                incarnation = (step << STEP_BITS) + inner.incarnation
                return FallbackConnection(inner.client, inner.model, incarnation, endpoint=endpoint, inner=inner)

    async def _step_down(self, step: int, why: VLLMError) -> None:
        with self._stepping:
            is_first = self._place.step == step  # of all requests that waited for the same start
            self._place.step = max(self._place.step, step + 1)
        if not is_first:
            return
        level = logging.INFO if isinstance(why, EngineNotInstalledError) else logging.WARNING
        _log.log(level, "mode %r is used in place of %r: %s", self._modes[step + 1], self._modes[step], why)
        if self._modes[step] == "direct":  # a start that only took too long would go on, and hold memory twice
            try:
                await asyncio.wait_for(self._endpoints[step].shutdown(END_S, force=True), END_S)
            except (VLLMError, TimeoutError) as exc:
                _log.debug("the direct engine that did not start: %s", exc)

    def release(self, connection: Connection) -> None:
        assert isinstance(connection, FallbackConnection)
        connection.endpoint.release(connection.inner)

    def answered(self, connection: Connection) -> None:
        assert isinstance(connection, FallbackConnection)
        connection.endpoint.answered(connection.inner)

    def counted_by(self, connection: Connection | None) -> EngineName:
        if not isinstance(connection, FallbackConnection):
            return self._current.counted_by(None)
        return connection.endpoint.counted_by(connection.inner)

    def counted_together(self) -> list[EngineName]:
        return self._current.counted_together()

    async def member_endpoints(self) -> dict[str, Endpoint]:
        return await self._current.member_endpoints()

    async def check_health(self, client: Client) -> None:
        await self._current.check_health(client)

    @property
    def adapters(self) -> dict[str, str]:
        return self._current.adapters

    def check_model(self, name: str, parameter: str) -> None:
        self._current.check_model(name, parameter)

    async def serving(self, name: str, connection: Connection) -> Connection:
        assert isinstance(connection, FallbackConnection)
        inner = await connection.endpoint.serving(name, connection.inner)
        return replace(connection, model=inner.model, name=inner.name, inner=inner)

    async def check_adapter(self, name: str, path: str) -> None:
        await self._current.check_adapter(name, path)

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:
        assert isinstance(connection, FallbackConnection)
        await connection.endpoint.load_adapter(name, path, connection.inner)

    async def unload_adapter(self, name: str) -> None:
        await self._current.unload_adapter(name)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert isinstance(connection, FallbackConnection)
        return await connection.endpoint.explain(error, connection.inner)

    async def status(self, *, processes: bool) -> EngineInfo:
        return await self._current.status(processes=processes)

    async def observer_client(self) -> Client | None:
        return await self._current.observer_client()

    async def observer_clients(self) -> list[Client]:
        return await self._current.observer_clients()

    async def evict(self, timeout: float) -> None:
        await self._current.evict(timeout)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        """The next request begins with the first endpoint again."""
        current, self._place.step = self._current, 0
        await current.shutdown(timeout, force=force)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()


_places: dict[str, Place] = {}


def place_of(settings: str) -> Place:
    """Shared by all whose settings are these."""
    return _places.setdefault(settings, Place())
