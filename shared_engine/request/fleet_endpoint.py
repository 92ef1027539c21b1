"""Several servers behind one object: each request goes to one of them, and to another while nothing of an answer has
reached the caller.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any

from shared_engine.errors import (
    EngineError,
    ModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.pool.pool import Fault, Member
from shared_engine.request.affinity import affinity_key
from shared_engine.request.client import Client
from shared_engine.request.endpoint import AnotherModelError, Connection, Endpoint, Route
from shared_engine.request.fleet import fleet_of
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.remote import RemoteEndpoint
from shared_engine.request.tally import EngineName
from shared_engine.runtime.record import EngineState
from shared_engine.settings import EngineSettings

LONGEST_WAIT_S = 1.0
"""Where all are out: then the one that returns first is tried before its time."""
MEMBER_BITS = 32
BUSY = (429, 503, 529)


@dataclass(frozen=True)
class FleetConnection(Connection):
    """A connection to one member."""

    member: Member = field(kw_only=True)
    endpoint: RemoteEndpoint = field(kw_only=True)
    inner: Connection = field(kw_only=True)


class FleetEndpoint(Endpoint):
    """Several servers. Constructing one opens nothing."""

    awaited = "a server of the fleet"

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._of_members = {str(each.base_url): each for each in settings.members()}
        self._endpoints: dict[str, RemoteEndpoint] = {}
        self.fleet = fleet_of(settings)

    @property
    def name(self) -> EngineName:
        urls = self._settings.base_url
        return EngineName(self._settings.model or "", ",".join(urls) if isinstance(urls, tuple) else str(urls))

    def endpoint_of(self, url: str) -> RemoteEndpoint:
        """The endpoint of one member; one that came later is reached as the first one is."""
        if url not in self._endpoints:
            settings = self._of_members.get(url)
            if settings is None:
                own = self.fleet.came_later.get(url)
                update: dict[str, Any] = {"base_url": url, "member_weights": None}
                if own is not None:
                    update |= {"api_key": own.api_key, "basic_auth": own.basic_auth}
                settings = self._settings.model_copy(update=update)
            self._endpoints[url] = RemoteEndpoint(settings)
        return self._endpoints[url]

    def for_request(
        self, path: str = "", body: bytes = b"", session: str | None = None, model: str | None = None
    ) -> FleetRequest:
        return FleetRequest(self, model or self._settings.model or "", session or affinity_key(path, body))

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        return await self.for_request().acquire(headers)

    def release(self, connection: Connection) -> None:
        assert isinstance(connection, FleetConnection)
        with self.fleet.guard:
            self.fleet.pool.ended(connection.member)
        connection.endpoint.release(connection.inner)

    def answered(self, connection: Connection) -> None:
        assert isinstance(connection, FleetConnection)
        with self.fleet.guard:
            self.fleet.pool.answered(connection.member)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert isinstance(connection, FleetConnection)
        return await connection.endpoint.explain(error, connection.inner)

    async def serving(self, name: str, connection: Connection) -> Connection:
        assert isinstance(connection, FleetConnection)
        inner = await connection.endpoint.serving(name, connection.inner)
        return replace(connection, model=inner.model, name=inner.name, inner=inner)

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:  # noqa: ARG002
        """On all servers."""

        async def load(endpoint: RemoteEndpoint) -> None:
            await endpoint.load_adapter(name, path, await endpoint.acquire())

        await asyncio.gather(*(load(self.endpoint_of(url)) for url in list(self.fleet.pool.members)))

    async def unload_adapter(self, name: str) -> None:
        await asyncio.gather(*(self.endpoint_of(url).unload_adapter(name) for url in list(self.fleet.pool.members)))

    async def status(self, *, processes: bool) -> EngineInfo:
        await self.fleet.refresh()
        members = list(self.fleet.pool.members.values())
        asked = (self.endpoint_of(each.name).status(processes=processes) for each in members)
        infos = [
            replace(info, in_flight=member.in_flight, last_error=info.last_error or member.last_error or None)
            for info, member in zip(await asyncio.gather(*asked), members, strict=True)
        ]
        ready = [info for info in infos if info.state is EngineState.READY]
        said = [f"{info.base_url}: {info.last_error}" for info in infos if info.last_error]
        return EngineInfo(
            state=EngineState.READY if ready else EngineState.FAILED,
            model=self._settings.model or next((info.model for info in ready), None),
            base_url=", ".join(each.name for each in members),
            last_error="; ".join(said) or None,
            max_model_len=self.max_model_len,
            members=tuple(infos),
        )

    async def check_health(self, client: Client) -> None:
        await self.endpoint_of(next(iter(self.fleet.pool.members))).check_health(client)

    async def observer_client(self) -> Client | None:
        return next(iter(await self.observer_clients()), None)

    async def observer_clients(self) -> list[Client]:
        await self.fleet.refresh()
        names = list(self.fleet.pool.members)
        found = [await self.endpoint_of(name).observer_client() for name in names]
        return [client for client in found if client is not None]

    async def evict(self, timeout: float) -> None:  # noqa: ARG002
        raise EngineError("these servers are remote: vllm-local never stops a remote server")

    async def shutdown(self, timeout: float, *, force: bool) -> None:  # noqa: ARG002
        await self.evict(timeout)

    async def close(self) -> None:
        for endpoint in self._endpoints.values():
            await endpoint.close()


class FleetRequest(Route):
    """One request to a fleet: what it prefers, and where it has failed."""

    awaited = FleetEndpoint.awaited

    def __init__(self, owner: FleetEndpoint, model: str, key: str | None) -> None:
        self._owner = owner
        self._fleet = owner.fleet
        self._model = model
        self._key = key
        self._tried: set[str] = set()
        self._said: dict[str, str] = {}
        """Why each member failed that was tried."""
        self._is_first_round = True
        self._last = ""

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        await self._fleet.refresh()
        member = await self._chosen()
        self._last = member.name
        endpoint = self._owner.endpoint_of(member.name)
        try:
            inner = await endpoint.acquire(headers)
        except BaseException as exc:
            if isinstance(exc, RequestError):
                self._note(member, exc)
            with self._fleet.guard:
                self._fleet.pool.ended(member)
            raise
        self._owner.max_model_len = endpoint.max_model_len or self._owner.max_model_len
        incarnation = (member.number << MEMBER_BITS) + inner.incarnation
        return FleetConnection(inner.client, inner.model, incarnation, member=member, endpoint=endpoint, inner=inner)

    async def _chosen(self) -> Member:
        while True:
            now = time.monotonic()
            member = self._choice(now)
            if member is not None:
                return member
            with self._fleet.guard:
                returns_at = self._fleet.pool.returns_at(now, self._model, self._tried)
            if returns_at is None and self._tried:
                self._tried, self._is_first_round = set(), False
            elif returns_at is None:
                raise self._nobody()
            else:
                await asyncio.sleep(min(max(0.0, returns_at - now), LONGEST_WAIT_S))
                member = self._choice(max(returns_at, time.monotonic()))
                if member is not None:
                    return member

    def _choice(self, now: float) -> Member | None:
        with self._fleet.guard:
            return self._fleet.pool.choose(now, key=self._key, model=self._model, tried=self._tried)

    def _nobody(self) -> RequestError:
        members = self._fleet.pool.members.values()
        if not members:
            return RequestError("the fleet has no server left: add one")
        if all(member.is_draining for member in members):
            return RequestError("all servers of the fleet are being drained: add one")
        names = ", ".join(member.name for member in members if not member.is_draining)
        return ModelNotFoundError(f"none of {names} serves {self._model!r}", 404)

    def release(self, connection: Connection) -> None:
        self._owner.release(connection)

    def answered(self, connection: Connection) -> None:
        self._owner.answered(connection)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert isinstance(connection, FleetConnection)
        explained = await self._owner.explain(error, connection)
        return self._note(connection.member, explained) if isinstance(explained, RequestError) else explained

    def _note(self, member: Member, error: RequestError) -> RequestError:
        """What the error says about the member; the error, as one that another member may make good."""
        now, fault = time.monotonic(), fault_of(error)
        with self._fleet.guard:
            if self._model and isinstance(error, ModelNotFoundError):
                self._fleet.pool.lack(member, self._model, now)
                error = error if isinstance(error, AnotherModelError) else AnotherModelError(*error.args)
            elif fault is None:
                self._fleet.pool.answered(member)
                return error
            else:
                self._fleet.pool.failed(member, fault, now, error.message, error.retry_after_s or 0.0)
        self._tried.add(member.name)
        self._said[member.name] = error.message
        return error

    def can_move(self) -> bool:
        members = list(self._fleet.pool.members.values())
        return self._is_first_round and any(not each.is_draining and each.name not in self._tried for each in members)

    def sum_up(self, error: VLLMError) -> None:
        others = [f"{url}: {words}" for url, words in self._said.items() if url != self._last]
        if others and isinstance(error, RequestError):
            error.args = (f"{error.message} (also tried: {'; '.join(others)})", *error.args[1:])


def fault_of(error: RequestError) -> Fault | None:
    """What it says about the server; None where it is the request's own fault."""
    if isinstance(error, ServerConnectionError):
        return Fault.GONE
    if isinstance(error, RequestTimeoutError):
        return Fault.SILENT
    if error.status in BUSY:
        return Fault.BUSY
    return Fault.BROKEN if isinstance(error, ServerError) else None
