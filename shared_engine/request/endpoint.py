"""Where requests go: an engine of this machine (leased, started on demand) or a server somebody else runs.

Both hand out a ``Server`` for the time of one request, and say what a failed request means. Only the local place
ever starts, keeps or ends anything.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import msgspec

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineError,
    ModelNotFoundError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    VLLMError,
)
from shared_engine.launch.spec import engine_spec
from shared_engine.request.attach import Attachment, attachment
from shared_engine.request.client import Client, LoopClients, drop_socket, loop_clients
from shared_engine.request.wire import parse_metrics, parse_models, says_engine_busy, says_engine_died
from shared_engine.runtime.policy import Policy
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import EngineState, Record
from shared_engine.settings import EngineSettings

PROBE_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 2.0
ENGINE_URL = "http://engine"  # over a Unix socket the host is a matter of form


@dataclass(frozen=True)
class Server:
    """A server for the time of one request.

    Attributes:
        client: connections of the running event loop.
        model: as the server names it.
        generation: which start of a local engine this is; how often a remote one turned out to have another model.
    """

    client: Client
    model: str
    generation: int = 0


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An engine as it is now. Asking starts nothing and keeps nothing awake."""

    state: EngineState
    model: str | None
    base_url: str | None = None
    """Set for a remote engine."""
    starts: int = 0
    """How often this engine was started."""
    start_seconds: float | None = None
    """How long the last start took."""
    progress: Progress | None = None
    """How far a start has come; None when none is under way."""
    devices: tuple[str, ...] = ()
    """What it runs on: ``cpu``, or ``cuda:0``, ..."""
    server_pid: int | None = None
    supervisor_pid: int | None = None
    socket: str | None = None
    log_file: str | None = None
    vllm_version: str | None = None
    last_error: str | None = None


class ForOneRequest:
    """Holds a server. Not an asynccontextmanager, for the reason given in client.py."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def __aenter__(self) -> Server:
        return await self._place.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._place.release()


class Place(ABC):
    """See the module's docstring.

    Attributes:
        max_model_len: the limit that the server told by the way; None as long as it did not.
    """

    max_model_len: int | None = None

    def server(self) -> ForOneRequest:
        """A server, ready, for one request."""
        return ForOneRequest(self)

    @abstractmethod
    async def acquire(self) -> Server: ...

    @abstractmethod
    def release(self) -> None: ...

    @abstractmethod
    async def explain(self, error: RequestError, server: Server) -> VLLMError:
        """What a failed request means here: the error itself, or the death of the engine."""

    @abstractmethod
    async def status(self) -> EngineStatus: ...

    @abstractmethod
    async def looking_client(self) -> Client | None:
        """A client that holds no lease, to look at a server that is up; None if none is."""

    @abstractmethod
    async def end(self, timeout: float, *, leave: bool, force: bool) -> None: ...

    @abstractmethod
    async def close(self) -> None:
        """Let go of the running loop's connections."""


class LocalPlace(Place):
    """An engine of this machine."""

    def __init__(self, settings: EngineSettings) -> None:
        self._show_progress = settings.show_progress
        self._policy = Policy(
            idle_ttl_s=settings.idle_ttl_s,
            sleep_after_s=math.inf if settings.sleep_after_s is None else settings.sleep_after_s,
            standby_ttl_s=settings.standby_ttl_s if settings.standby else 0.0,
            start_timeout_s=settings.start_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            pinned=settings.pinned,
            max_loaded_engines=settings.max_loaded_engines or 0,
        )
        self._attachment: Attachment = attachment(engine_spec(settings))
        self._settings = settings
        self._socket: str | None = None

    async def acquire(self) -> Server:
        record = await self._attachment.acquire(self._policy, show_progress=self._show_progress)
        try:
            client = await self._clients_of(record).get()
        except BaseException:
            self._attachment.release()
            raise
        return Server(client, self._attachment.spec.model, record.generation)

    def release(self) -> None:
        self._attachment.release()

    def _clients_of(self, record: Record) -> LoopClients:
        if self._socket is not None and self._socket != record.socket:
            drop_socket(ENGINE_URL, self._socket)  # of a start before
        self._socket = record.socket
        return loop_clients(ENGINE_URL, record.socket)

    async def explain(self, error: RequestError, server: Server) -> VLLMError:
        if isinstance(error, ServerConnectionError) or says_engine_died(error):
            return await self._attachment.death_of(server.generation) or error
        if says_engine_busy(error):
            limit = self._settings.engine_args.get("max_num_queued_reqs")
            return EngineBusyError(f"{server.model} has no room for a request (max_num_queued_reqs = {limit})")
        if isinstance(error, RequestTimeoutError):
            return RequestTimeoutError(f"{error.message}; {await _load_of(server)}")
        return error

    async def status(self) -> EngineStatus:
        record = self._attachment.record()
        return EngineStatus(
            state=record.state,
            model=record.model,
            starts=record.generation,
            start_seconds=record.start_seconds,
            progress=record.progress,
            devices=record.devices,
            server_pid=record.server_pid or None,
            supervisor_pid=record.supervisor_pid or None,
            socket=record.socket or None,
            log_file=str(self._attachment.directory.log),
            vllm_version=record.vllm_version,
            last_error=None if record.failure is None else record.failure.message,
        )

    async def looking_client(self) -> Client | None:
        record = self._attachment.record()
        return await self._clients_of(record).get() if record.state is EngineState.READY else None

    async def end(self, timeout: float, *, leave: bool, force: bool) -> None:
        await self._attachment.evict(timeout, leave=leave, force=force)

    async def close(self) -> None:
        if self._socket is not None:
            await loop_clients(ENGINE_URL, self._socket).close()


async def _load_of(server: Server) -> str:
    """What a request that had no answer in time waited for."""
    try:
        text = await server.client.request("GET", "/metrics", timeout=LOAD_TIMEOUT_S)
    except RequestError:
        return "the API server does not answer either"
    counts = parse_metrics(text.decode())
    running, waiting = (int(counts.get(f"num_requests_{what}", 0)) for what in ("running", "waiting"))
    return f"the engine has {running} requests running and {waiting} waiting in its queue"


class RemotePlace(Place):
    """A server somebody else runs."""

    def __init__(self, settings: EngineSettings) -> None:
        assert settings.base_url is not None
        key = settings.api_key.get_secret_value() if settings.api_key else None
        self._base_url = settings.base_url
        self._clients = loop_clients(settings.base_url, api_key=key)
        self._is_named = settings.model is not None
        self._model = settings.model
        self._generation = 0

    async def acquire(self) -> Server:
        client = await self._clients.get()
        if self._model is None:
            self._model = await self._first_model(client)
        return Server(client, self._model, self._generation)

    def release(self) -> None:
        pass

    async def _first_model(self, client: Client) -> str:
        models = parse_models(await client.request("GET", "/v1/models", timeout=PROBE_TIMEOUT_S))
        if not models:
            raise RequestError(f"{self._base_url} serves no model")
        name, self.max_model_len = models[0]
        return name

    async def explain(self, error: RequestError, server: Server) -> VLLMError:
        if isinstance(error, ModelNotFoundError) and not self._is_named and server.model in error.message:
            if server.generation == self._generation:  # else another request has noticed it already
                self._model, self.max_model_len, self._generation = None, None, self._generation + 1
            return _AnotherModelError(*error.args)
        return error

    async def status(self) -> EngineStatus:
        state, message = EngineState.READY, None
        try:
            await (await self._clients.get()).request("GET", "/health", timeout=PROBE_TIMEOUT_S)
        except RequestError as exc:
            state, message = EngineState.FAILED, str(exc)
        return EngineStatus(state=state, model=self._model, base_url=self._base_url, last_error=message)

    async def looking_client(self) -> Client | None:
        return await self._clients.get()

    async def end(self, timeout: float, *, leave: bool, force: bool) -> None:  # noqa: ARG002
        raise EngineError(f"the server at {self._base_url} is somebody else's: it is never stopped from here")

    async def close(self) -> None:
        await self._clients.close()


class _AnotherModelError(ModelNotFoundError):
    """The server has not the model any more that was its first one: it was started with another one, which will do."""


def is_retryable(error: VLLMError) -> bool:
    """True when trying again can help and nothing of an answer has reached the caller. Callers check the latter."""
    if isinstance(error, (ServerConnectionError, EngineDiedError, EngineBusyError, _AnotherModelError)):
        return True
    return isinstance(error, RequestError) and error.status in (429, 503)
