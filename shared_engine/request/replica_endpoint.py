"""Several engines of this machine behind one object, each on devices of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

from shared_engine.declared import Decides
from shared_engine.errors import EngineError, EngineStartError, RequestError, VLLMError
from shared_engine.launch.replica_sets import settings_of_replicas
from shared_engine.observe.engine_info import EngineInfo, combined
from shared_engine.request.adapters import Adapters
from shared_engine.request.batches import max_in_flight
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection
from shared_engine.request.fleet_endpoint import FleetConnection, FleetEndpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.io_loop import io_loop
from shared_engine.request.local import LocalEndpoint
from shared_engine.request.replicas import Replicas, Start, replicas_of, words_of
from shared_engine.request.routes import METRICS
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.tally import EngineName
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.metrics import requests_in
from shared_engine.settings import SETTINGS, EngineSettings

LOOK_TIMEOUT_S = 2.0
_log = logging.getLogger("shared_engine")


class ReplicaEndpoint(FleetEndpoint):
    """Engines of this machine. Constructing one reads no file and opens nothing."""

    awaited = "a replica to be ready"
    sends_done = True
    lacks_models = False

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._adapters = Adapters(settings)
        self._endpoints: dict[str, LocalEndpoint] = {}
        self._replicas = Replicas((), 1, starts_all=False)  # until it is known which there are
        self._resolving = SharedTasks()

    @property
    def members(self) -> Replicas:
        return self._replicas

    @property
    def name(self) -> EngineName:
        """The first one's, for requests that reached none."""
        return EngineName(self.settings.model or "", next((each.key for each in self._endpoints.values()), ""))

    def endpoint_of(self, name: str) -> LocalEndpoint:
        return self._endpoints[name]

    def is_up(self) -> bool:
        return any(endpoint.is_up() for endpoint in self._endpoints.values())

    # ---- which run

    async def refresh(self) -> None:
        """Find the interpreter and the devices."""
        if not self._endpoints:
            await self._resolving.run("replicas", self._resolve)

    async def _resolve(self) -> None:
        found = await in_a_thread(lambda: settings_of_replicas(self.settings))
        decisive = [name for name, each in SETTINGS.items() if each.decides is Decides.ENGINE]
        key = (repr([getattr(self.settings, name) for name in decisive]), tuple(found), self.settings.start)
        takes = max_in_flight(self.settings, 0)
        self._replicas = replicas_of(key, list(found), takes, starts_all=self.settings.start == "all")
        self._endpoints = {name: LocalEndpoint(settings) for name, settings in found.items()}

    async def prepare(self) -> None:
        """Start what is needed, in the background."""
        await self.refresh()
        now = time.monotonic()
        if self.members.is_look_due(now):
            _in_background(self._look())
        for name, start in self.members.to_start(now).items():
            try:
                _in_background(self._start(name, start))
            except EngineError as exc:  # the app ends
                self.members.ended(name, start, exc)

    async def _start(self, name: str, start: Start) -> None:
        # Where other replicas answer, nobody waits for this one: a bar would stand in the way of what the app shows.
        is_awaited = not self.members.has_another(set())
        error: Exception | None = None
        try:
            await self.endpoint_of(name).make_ready(is_awaited=is_awaited)
        except Exception as exc:
            error = exc
        self.members.ended(name, start, error)

    async def _look(self) -> None:
        """At the queue of each that is ready, whoever has started it."""
        for name, endpoint in self._endpoints.items():
            try:
                if not await endpoint.is_ready():
                    self.members.saw(name, None)
                    continue
                if endpoint.max_num_seqs is not None:
                    self.members.told(max_in_flight(self.settings, 0, endpoint.max_num_seqs))
                client = await endpoint.observer_client()
                if client is not None:
                    text = await client.request("GET", METRICS, timeout=LOOK_TIMEOUT_S)
                    self.members.saw(name, requests_in(text.decode()))
            except VLLMError:  # it ends just now, which the next request there finds
                continue

    async def connect(self, name: str, headers: HeaderPairs) -> Connection | None:
        return await self.endpoint_of(name).acquire_ready(headers)

    async def wait_for_one(self, model: str, said: dict[str, str]) -> None:  # noqa: ARG002
        members = self.members
        starts = dict(members.starts)
        if not starts:
            return  # one has ended just now
        with members.guard:
            members.waiting += 1
        try:
            await _until_one_ended(starts.values())
        finally:
            with members.guard:
                members.waiting -= 1
        errors = {name: start.result() for name, start in starts.items() if start.done()}
        failed = {name: error for name, error in errors.items() if error is not None}
        said |= {name: words_of(error) for name, error in failed.items()}
        if len(failed) < len(errors) or members.starts or members.has_another(set()):
            return
        name, error = next(iter(failed.items()))
        if isinstance(error, EngineStartError) and error.is_of_device and len(said) < len(self._endpoints):
            return
        del said[name]  # the error says it
        raise _own(error)

    # ---- adapters

    @property
    def adapters(self) -> dict[str, str]:
        return self._adapters.paths

    def check_model(self, name: str, parameter: str) -> None:
        self._adapters.check(name, parameter)

    async def check_adapter(self, name: str, path: str) -> None:
        await self._adapters.check_new(name, path)

    async def serving(self, name: str, connection: Connection) -> Connection:
        assert isinstance(connection, FleetConnection)
        path = self.adapters.get(name)
        if path is not None:
            self.endpoint_of(connection.member.name).know_adapter(name, path)
        return await super().serving(name, connection)

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:
        """On the replica of ``connection`` and all that are ready; on others when a request names it."""
        assert isinstance(connection, FleetConnection)
        await connection.endpoint.load_adapter(name, path, connection.inner)
        self._adapters.know(name, path)
        others = [each for each in self._endpoints.values() if each is not connection.endpoint]
        await asyncio.gather(*(_load_if_ready(each, name, path) for each in others))

    async def unload_adapter(self, name: str) -> None:
        path = self.adapters.get(name)
        if path is not None:
            for endpoint in (await self.member_endpoints()).values():
                assert isinstance(endpoint, LocalEndpoint)
                endpoint.know_adapter(name, path)
            await super().unload_adapter(name)
        await self._adapters.unload(name, None)

    # ---- life

    async def check_health(self, client: Client) -> None:
        """With ``start="all"``, of all of them.

        Raises:
            EngineError: one of them does not start.
        """
        await super().check_health(client)
        if self.settings.start == "all":
            await asyncio.gather(*(each.make_ready(is_awaited=True) for each in self._endpoints.values()))

    async def status(self, *, processes: bool) -> EngineInfo:
        return combined(await self.member_infos(processes=processes))

    async def keep(self, *, idle_ttl_s: float, pinned: bool | None = None) -> None:
        await self.refresh()
        await asyncio.gather(*(each.keep(idle_ttl_s=idle_ttl_s, pinned=pinned) for each in self._endpoints.values()))

    async def pin(self, *, is_pinned: bool) -> None:
        await self.refresh()
        await asyncio.gather(*(each.pin(is_pinned=is_pinned) for each in self._endpoints.values()))

    async def evict(self, timeout: float) -> None:
        await self._end(lambda endpoint: endpoint.evict(timeout))

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        await self._end(lambda endpoint: endpoint.shutdown(timeout, force=force))

    async def close(self) -> None:
        for endpoint in self._endpoints.values():
            await endpoint.close()

    async def _end(self, end: Callable[[LocalEndpoint], Awaitable[None]]) -> None:
        """Of each; the first error when all have ended, or have not."""
        await self.refresh()
        self.members.all_gone()  # so that requests that are stopped with one don't go on to the next
        results = await asyncio.gather(*map(end, self._endpoints.values()), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error


def _in_background(coroutine: Coroutine[Any, Any, None]) -> None:
    """On the loop that lasts: the caller's may end with its request.

    Raises:
        EngineError: the app ends.
    """
    try:
        loop = io_loop()
    except BaseException:
        coroutine.close()
        raise
    asyncio.run_coroutine_threadsafe(coroutine, loop).add_done_callback(_tell)


def _tell(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("replicas could not be looked after: %r", error)


async def _until_one_ended(starts: Iterable[Start]) -> None:
    """Cancelling the caller ends its waiting only."""
    await asyncio.wait([asyncio.wrap_future(start) for start in starts], return_when=asyncio.FIRST_COMPLETED)


async def _load_if_ready(endpoint: LocalEndpoint, name: str, path: str) -> None:
    endpoint.know_adapter(name, path)
    connection = await endpoint.acquire_ready()
    if connection is None:
        return
    try:
        await endpoint.load_adapter(name, path, connection)
    except RequestError as exc:
        error = await endpoint.explain(exc, connection)
        if error is exc:
            raise
        _log.info("the adapter %s is loaded on %s when a request names it: %s", name, endpoint.key, error)
    finally:
        endpoint.release(connection)


def _own(error: Exception) -> Exception:
    """All who wait get the same error: each its own, with its own traceback."""
    return type(error)(*error.args) if isinstance(error, VLLMError) else error
