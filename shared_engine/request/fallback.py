"""Several endpoints in an order: the first one that can start has the requests."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared_engine.errors import (
    AuthenticationError,
    EngineNotInstalledError,
    EngineStartError,
    PermissionDeniedError,
    RequestError,
    VLLMError,
)
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection, Endpoint, Route
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.retry import is_retryable_elsewhere
from shared_engine.request.tally import EngineName
from shared_engine.settings import SECRET, EngineSettings

END_S = 10.0
STEP_BITS = 32

_log = logging.getLogger("shared_engine")


@dataclass(frozen=True)
class FallbackConnection(Connection):
    """A connection that knows which endpoint gave it: requests in flight outlive a step down."""

    endpoint: Endpoint = field(kw_only=True)
    route: Route = field(kw_only=True)
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

    @property
    def _current(self) -> Endpoint:
        endpoint = self._endpoints[self._place.step]
        self.awaited, self.sends_done = endpoint.awaited, endpoint.sends_done
        return endpoint

    @property
    def name(self) -> EngineName:
        return self._current.name

    def for_request(
        self, path: str = "", body: bytes = b"", session: str | None = None, model: str | None = None
    ) -> FallbackRequest:
        return FallbackRequest(self, lambda endpoint: endpoint.for_request(path, body, session, model))

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        return await self.for_request().acquire(headers)

    async def try_step(self, route_of: Callable[[int, Endpoint], Route], headers: HeaderPairs) -> Connection | None:
        """A connection to the endpoint that is used now; None where it can't be, and the next one is used from now on.

        Raises:
            VLLMError: there is no next one; or a server refuses the key.
        """
        step, endpoint = self._place.step, self._current
        route = route_of(step, endpoint)
        try:
            inner = await self._reached(step, endpoint, route, headers)
        except (AuthenticationError, PermissionDeniedError):  # the server is there, and the key is the caller's
            raise
        except (EngineStartError, RequestError) as exc:
            if step + 1 == len(self._endpoints):
                raise
            await self._step_down(step, exc)
            return None
        self.max_model_len = endpoint.max_model_len or self.max_model_len
        self.max_num_seqs = endpoint.max_num_seqs or self.max_num_seqs
        incarnation = (step << STEP_BITS) + inner.incarnation
        return FallbackConnection(inner.client, inner.model, incarnation, endpoint=endpoint, route=route, inner=inner)

    async def _reached(self, step: int, endpoint: Endpoint, route: Route, headers: HeaderPairs) -> Connection:
        """A server that something may be used in place of has answered: the first of a fleet that does."""
        while True:
            inner = await route.acquire(headers)
            try:
                if step + 1 < len(self._endpoints) and self._modes[step] == "remote":
                    await endpoint.check_health(inner.client)
            except RequestError as exc:
                explained = await route.explain(exc, inner)
                route.release(inner)
                if not (route.can_move() and is_retryable_elsewhere(explained)):
                    raise explained from exc
            except BaseException:
                route.release(inner)
                raise
            else:
                return inner

    async def _step_down(self, step: int, why: VLLMError) -> None:
        with _stepping:
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
        connection.route.release(connection.inner)

    def answered(self, connection: Connection) -> None:
        assert isinstance(connection, FallbackConnection)
        connection.route.answered(connection.inner)

    def counted_by(self, connection: Connection | None) -> EngineName:
        if not isinstance(connection, FallbackConnection):
            return self._current.counted_by(None)
        return connection.endpoint.counted_by(connection.inner)

    def counted_together(self) -> list[EngineName]:
        return self._current.counted_together()

    def is_up(self) -> bool:
        return self._current.is_up()

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
        return await connection.route.explain(error, connection.inner)

    async def status(self, *, processes: bool) -> EngineInfo:
        return await self._current.status(processes=processes)

    async def observer_client(self) -> Client | None:
        return await self._current.observer_client()

    async def observer_clients(self) -> list[Client]:
        return await self._current.observer_clients()

    async def keep(self, *, idle_ttl_s: float, pinned: bool | None = None) -> None:
        await self._current.keep(idle_ttl_s=idle_ttl_s, pinned=pinned)

    async def pin(self, *, is_pinned: bool) -> None:
        await self._current.pin(is_pinned=is_pinned)

    async def evict(self, timeout: float) -> None:
        await self._current.evict(timeout)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        """The next request begins with the first endpoint again."""
        current, self._place.step = self._current, 0
        await current.shutdown(timeout, force=force)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()


class FallbackRequest(Route):
    """One request, and its route on each endpoint that it has come to.

    Args:
        make: its route on an endpoint.
    """

    def __init__(self, owner: FallbackEndpoint, make: Callable[[Endpoint], Route]) -> None:
        self._owner = owner
        self._make = make
        self._routes: dict[int, Route] = {}
        self._last: Route | None = None

    def _route_of(self, step: int, endpoint: Endpoint) -> Route:
        self._last = self._routes.get(step) or self._routes.setdefault(step, self._make(endpoint))
        self.awaited, self.sends_done = self._last.awaited, self._last.sends_done
        return self._last

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        while True:
            connection = await self._owner.try_step(self._route_of, headers)
            if connection is not None:
                return connection

    def release(self, connection: Connection) -> None:
        self._owner.release(connection)

    def answered(self, connection: Connection) -> None:
        self._owner.answered(connection)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        return await self._owner.explain(error, connection)

    def can_move(self) -> bool:
        return self._last is not None and self._last.can_move()

    def sum_up(self, error: VLLMError) -> None:
        if self._last is not None:
            self._last.sum_up(error)


_places: dict[Hashable, Place] = {}
_stepping = threading.Lock()


def _forget_in_child() -> None:
    """A thread of the parent may have held the lock."""
    global _stepping
    _stepping = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)


def place_of(settings: EngineSettings) -> Place:
    """Shared by all whose settings are these, secrets among them: with another key a server may be one that answers."""
    secrets = [getattr(settings, name) for name in SECRET]
    key = tuple(tuple(each.items()) if isinstance(each, Mapping) else each for each in secrets)
    return _places.setdefault((settings.model_dump_json(), key), Place())
