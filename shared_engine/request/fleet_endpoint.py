"""Several servers or engines behind one object: each request goes to one of them, and to another while nothing of an
answer has reached the caller.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from dataclasses import dataclass, field, replace

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineStoppedError,
    ModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.pool.pool import Fault, Member, Pool
from shared_engine.request.affinity import affinity_key
from shared_engine.request.client import Client
from shared_engine.request.endpoint import AnotherModelError, Connection, Endpoint, Route
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.members import Members
from shared_engine.request.retry import is_retryable_elsewhere
from shared_engine.request.tally import EngineName
from shared_engine.settings import EngineSettings

LONGEST_WAIT_S = 1.0
"""Where all are out: then the one that returns first is tried before its time."""
MEMBER_BITS = 32
BUSY = (429, 503, 529)


@dataclass(frozen=True)
class FleetConnection(Connection):
    """A connection to one member."""

    member: Member = field(kw_only=True)
    endpoint: Endpoint = field(kw_only=True)
    inner: Connection = field(kw_only=True)


class FleetEndpoint(Endpoint):
    """What fleets have in common, whatever their members are. Constructing one opens nothing."""

    lacks_models = True
    """Whether a member that answers "no such model" may go on without it."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings

    # ---- of each kind

    @property
    @abstractmethod
    def members(self) -> Members:
        """Those that this process knows."""

    @abstractmethod
    def endpoint_of(self, name: str) -> Endpoint:
        """The endpoint of one member."""

    async def refresh(self) -> None:
        """See that the members are those there are. Starts nothing.

        Raises:
            VLLMError: that can't be found out.
        """

    async def prepare(self) -> None:
        """Before each choice."""
        await self.refresh()

    async def connect(self, name: str, headers: HeaderPairs) -> Connection | None:
        """To a member that was chosen; None where it does not answer any more, and is not to be waited for."""
        return await self.endpoint_of(name).acquire(headers)

    @abstractmethod
    async def wait_for_one(self, model: str, said: dict[str, str]) -> None:
        """No member can be chosen, nor comes back by itself. Return when that may have changed.

        Args:
            said: why each member failed that was tried; to be added to.

        Raises:
            VLLMError: it will not.
        """

    # ---- requests

    def for_request(
        self, path: str = "", body: bytes = b"", session: str | None = None, model: str | None = None
    ) -> FleetRequest:
        return FleetRequest(self, model or self.settings.model or "", session or affinity_key(path, body))

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        return await self.for_request().acquire(headers)

    def release(self, connection: Connection) -> None:
        assert isinstance(connection, FleetConnection)
        with self.members.guard:
            self.members.pool.ended(connection.member)
        connection.endpoint.release(connection.inner)

    def answered(self, connection: Connection) -> None:
        assert isinstance(connection, FleetConnection)
        with self.members.guard:
            self.members.pool.answered(connection.member)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert isinstance(connection, FleetConnection)
        return await connection.endpoint.explain(error, connection.inner)

    def counted_by(self, connection: Connection | None) -> EngineName:
        """The member that it was asked of last."""
        name = self.name
        if isinstance(connection, FleetConnection):
            name = connection.endpoint.counted_by(connection.inner)
        self.members.asked[name] = None
        return name

    def counted_together(self) -> list[EngineName]:
        """Of all that were asked, and of those there are, whoever has asked them."""
        names = [self.endpoint_of(name).name for name in self.members.pool.members]
        return list(dict.fromkeys([*self.members.asked, *(name for name in names if name.engine)]))

    async def member_endpoints(self) -> dict[str, Endpoint]:
        await self.refresh()
        return {name: self.endpoint_of(name) for name in self.members.pool.members}

    # ---- adapters

    async def serving(self, name: str, connection: Connection) -> Connection:
        assert isinstance(connection, FleetConnection)
        inner = await connection.endpoint.serving(name, connection.inner)
        return replace(connection, model=inner.model, name=inner.name, inner=inner)

    async def unload_adapter(self, name: str) -> None:
        members = await self.member_endpoints()
        await asyncio.gather(*(each.unload_adapter(name) for each in members.values()))

    # ---- looks and ends

    async def member_infos(self, *, processes: bool) -> list[EngineInfo]:
        """Each member as it is now."""
        endpoints = await self.member_endpoints()
        infos = await asyncio.gather(*(each.status(processes=processes) for each in endpoints.values()))
        members = [self.members.pool.members.get(name) or Member(name) for name in endpoints]
        return [
            replace(
                info,
                member=member.name,
                in_flight=member.in_flight,
                last_error=info.last_error or member.last_error or None,
            )
            for info, member in zip(infos, members, strict=True)
        ]

    async def check_health(self, client: Client) -> None:
        await self.endpoint_of(next(iter(self.members.pool.members))).check_health(client)

    async def observer_client(self) -> Client | None:
        return next(iter(await self.observer_clients()), None)

    async def observer_clients(self) -> list[Client]:
        found = [await each.observer_client() for each in (await self.member_endpoints()).values()]
        return [client for client in found if client is not None]


class FleetRequest(Route):
    """One request to a fleet: what it prefers, and where it has failed."""

    def __init__(self, owner: FleetEndpoint, model: str, key: str | None) -> None:
        self.awaited, self.sends_done = owner.awaited, owner.sends_done
        self._owner = owner
        self._model = model
        self._key = key
        self._tried: set[str] = set()
        self._said: dict[str, str] = {}
        """Why each member failed that was tried."""
        self._is_first_round = True
        self._last = ""

    @property
    def _members(self) -> Members:
        return self._owner.members

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        while True:
            member = await self._chosen()
            self._last = member.name
            try:
                inner = await self._owner.connect(member.name, headers)
            except BaseException as exc:
                noted = self._refused_by(member, exc) if isinstance(exc, VLLMError) else exc
                with self._members.guard:
                    self._members.pool.ended(member)
                if noted is exc:
                    raise
                raise noted from exc
            if inner is not None:
                return self._connection(member, inner)
            with self._members.guard:
                self._members.pool.ended(member)
                self._members.gone(member)

    def _refused_by(self, member: Member, error: VLLMError) -> VLLMError:
        """As ``_note``: a member that does not list its models is not asked for one by name."""
        lacks_model = bool(self._model) and self._owner.lacks_models and isinstance(error, ModelNotFoundError)
        return self._note(member, error, lacks_model=lacks_model)

    def _connection(self, member: Member, inner: Connection) -> FleetConnection:
        endpoint = self._owner.endpoint_of(member.name)
        self._owner.max_model_len = endpoint.max_model_len or self._owner.max_model_len
        self._owner.max_num_seqs = endpoint.max_num_seqs or self._owner.max_num_seqs
        incarnation = (member.number << MEMBER_BITS) + inner.incarnation
        return FleetConnection(inner.client, inner.model, incarnation, member=member, endpoint=endpoint, inner=inner)

    async def _chosen(self) -> Member:
        while True:
            await self._owner.prepare()
            now = time.monotonic()
            member = self._choice(now)
            if member is not None:
                return member
            with self._members.guard:
                returns_at = self._members.pool.returns_at(now, self._model, self._tried)
            if returns_at is None and self._tried:
                self._tried, self._is_first_round = set(), False
            elif returns_at is None and not self._said and self._asks_again():
                continue
            elif returns_at is None:
                await self._owner.wait_for_one(self._model, self._said)
            else:
                await asyncio.sleep(min(max(0.0, returns_at - now), LONGEST_WAIT_S))
                member = self._choice(max(returns_at, time.monotonic()))
                if member is not None:
                    return member

    def _asks_again(self) -> bool:
        """Whether the members only lack the model, as far as is known: one of them is asked whether it still does."""
        with self._members.guard:
            return self._members.pool.forget_lack(self._model)

    def _choice(self, now: float) -> Member | None:
        with self._members.guard:
            return self._members.pool.choose(now, key=self._key, model=self._model, tried=self._tried)

    def release(self, connection: Connection) -> None:
        self._owner.release(connection)

    def answered(self, connection: Connection) -> None:
        self._owner.answered(connection)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert isinstance(connection, FleetConnection)
        explained = await self._owner.explain(error, connection)
        return self._note(connection.member, explained, lacks_model=self._is_about_model(error))

    def _is_about_model(self, error: RequestError) -> bool:
        """True where the member says that it does not serve the model; a route that it lacks is the request's own."""
        is_named = bool(self._model) and self._model in error.message
        return is_named and self._owner.lacks_models and isinstance(error, ModelNotFoundError)

    def _note(self, member: Member, error: VLLMError, *, lacks_model: bool = False) -> VLLMError:
        """What the error says about the member; the error, as one that another member may make good."""
        now, fault = time.monotonic(), fault_of(error)
        words = str(getattr(error, "message", error))
        with self._members.guard:
            pool = self._members.pool
            if lacks_model:
                pool.lack(member, self._model, now)
                if pool.returns_at(now, self._model) is None:
                    error = none_serves(pool, self._model, words)
                elif not isinstance(error, AnotherModelError):
                    error = AnotherModelError(*error.args)
            elif isinstance(error, EngineStoppedError):
                self._members.gone(member)
            elif fault is None:
                if isinstance(error, RequestError):
                    pool.answered(member)
                if not is_retryable_elsewhere(error):
                    return error
            elif fault is not Fault.DIED or self._members.gone(member):  # of all that it had, one tells
                pool.failed(member, fault, now, words, getattr(error, "retry_after_s", None) or 0.0)
                if fault is Fault.BUSY:
                    self._members.refused(now)
        self._tried.add(member.name)
        self._said[member.name] = words
        return error

    def can_move(self) -> bool:
        return self._is_first_round and self._members.has_another(self._tried)

    def sum_up(self, error: VLLMError) -> None:
        others = [f"{name}: {words}" for name, words in self._said.items() if name != self._last]
        if others and isinstance(error, RequestError | EngineError):
            error.args = (f"{error.message} (also tried: {'; '.join(others)})", *error.args[1:])


def none_serves(pool: Pool, model: str, words: str = "") -> ModelNotFoundError:
    """The error of a model that all members lack, with what the last one said."""
    names = ", ".join(member.name for member in pool.members.values() if not member.is_draining)
    return ModelNotFoundError(f"none of {names} serves {model!r}" + (words and f": {words}"), 404)


def fault_of(error: VLLMError) -> Fault | None:
    """What it says about the member; None where it is the request's own."""
    if isinstance(error, EngineDiedError):
        return Fault.DIED
    if isinstance(error, EngineBusyError):
        return Fault.BUSY
    if isinstance(error, ServerConnectionError):
        return Fault.GONE
    if isinstance(error, RequestTimeoutError):
        return Fault.SILENT
    if not isinstance(error, RequestError):
        return None
    if error.status in BUSY:
        return Fault.BUSY
    return Fault.BROKEN if isinstance(error, ServerError) and error.should_retry is not False else None
