"""What endpoints have in common whose engine is started on demand, wherever it runs."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import replace

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStoppedError,
    ModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.request.adapters import Adapters
from shared_engine.request.endpoint import Connection, Endpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.refusals import says_engine_busy
from shared_engine.request.routes import METRICS
from shared_engine.request.tally import EngineName
from shared_engine.runtime.metrics import requests_in
from shared_engine.settings import EngineSettings

LOAD_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)


class EngineEndpoint(Endpoint):
    """An engine of ours."""

    awaited = "the engine to be ready"
    sends_done = True

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._adapters = Adapters(settings)

    @property
    @abstractmethod
    def key(self) -> str:
        """Of the engine; empty until it is known."""

    @property
    def name(self) -> EngineName:
        return EngineName(self._settings.model or "", self.key)

    def leave_out(self, headers: HeaderPairs) -> None:
        """Those are of other services, which frameworks give to any model; or of a model that was remote until now."""
        if headers:
            logger.debug("a local engine gets no extra_headers: %s", ", ".join(name for name, _ in headers))

    # ---- adapters

    @property
    def adapters(self) -> dict[str, str]:
        return self._adapters.paths

    def check_model(self, name: str, parameter: str) -> None:
        self._adapters.check(name, parameter)

    async def serving(self, name: str, connection: Connection) -> Connection:
        if self._adapters.is_model(name):
            return connection
        served = await self._adapters.served_name(name, connection.client, self._start_of(connection))
        return replace(connection, model=served, name=name)

    async def check_adapter(self, name: str, path: str) -> None:
        await self._adapters.check_new(name, path)

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:
        await self._adapters.load(name, path, connection.client, self._start_of(connection))

    def know_adapter(self, name: str, path: str) -> None:
        """Requests may name it from now on; it is loaded for the first one."""
        self._adapters.know(name, path)

    async def unload_adapter(self, name: str) -> None:
        await self._adapters.unload(name, await self.observer_client())

    def _start_of(self, connection: Connection) -> tuple[str, int]:
        return type(self).__name__, connection.incarnation

    # ---- errors

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        if isinstance(error, ModelNotFoundError) and connection.name not in (None, connection.model):
            self._adapters.forget(connection.model)  # somebody has unloaded it: it is loaded again
            error.should_retry = True
            return error
        if says_engine_busy(error):
            limit = self._settings.engine_args.get("max_num_queued_reqs")
            return EngineBusyError(f"{connection.model} has no room for a request (max_num_queued_reqs = {limit})")
        # vLLM has many words for an engine that is going, and some for requests that it reports as its own fault.
        is_of_request = isinstance(error, ServerError) and error.should_retry is False
        if isinstance(error, ServerConnectionError | ServerError) and not is_of_request:
            return await self.death_of(connection) or error
        if isinstance(error, RequestTimeoutError):
            load = await _load_of(connection)
            died = None if load is not None else await self.death_of(connection)
            return died or RequestTimeoutError(f"{error.message}; {load or 'the API server does not answer either'}")
        return error

    @abstractmethod
    async def death_of(self, connection: Connection) -> EngineDiedError | EngineStoppedError | None:
        """The end of the engine that ``connection`` was to; None where it has not ended."""


async def _load_of(connection: Connection) -> str | None:
    """What a request that had no answer in time waited for; None where the server answers nothing else either."""
    try:
        text = await connection.client.request("GET", METRICS, timeout=LOAD_TIMEOUT_S)
    except RequestError:
        return None
    running, waiting = requests_in(text.decode())
    return f"the engine has {running} requests running and {waiting} waiting in its queue"
