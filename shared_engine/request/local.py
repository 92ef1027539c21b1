"""An engine of this machine: leased for each request, started on demand."""

from __future__ import annotations

import math

from shared_engine.errors import (
    EngineBusyError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    VLLMError,
)
from shared_engine.launch.spec import engine_spec
from shared_engine.request.attach import Attachment, attachment
from shared_engine.request.client import Client, LoopClients, drop_socket, loop_clients
from shared_engine.request.endpoint import Connection, Endpoint, EngineStatus
from shared_engine.request.refusals import says_engine_busy, says_engine_died
from shared_engine.runtime.metrics import totals
from shared_engine.runtime.policy import Policy
from shared_engine.runtime.record import EngineState, Record
from shared_engine.settings import EngineSettings

LOAD_TIMEOUT_S = 2.0
ENGINE_URL = "http://engine"  # over a Unix socket the host is a matter of form


class LocalEndpoint(Endpoint):
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

    async def acquire(self) -> Connection:
        record = await self._attachment.acquire(self._policy, show_progress=self._show_progress)
        try:
            client = await self._clients_of(record).get()
        except BaseException:
            self._attachment.release()
            raise
        return Connection(client, self._attachment.spec.model, record.generation)

    def release(self, connection: Connection) -> None:  # noqa: ARG002
        self._attachment.release()

    def _clients_of(self, record: Record) -> LoopClients:
        if self._socket is not None and self._socket != record.socket:
            drop_socket(ENGINE_URL, self._socket)  # of a start before
        self._socket = record.socket
        return loop_clients(ENGINE_URL, record.socket)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        if isinstance(error, ServerConnectionError) or says_engine_died(error):
            return await self._attachment.death_of(connection.generation) or error
        if says_engine_busy(error):
            limit = self._settings.engine_args.get("max_num_queued_reqs")
            return EngineBusyError(f"{connection.model} has no room for a request (max_num_queued_reqs = {limit})")
        if isinstance(error, RequestTimeoutError):
            return RequestTimeoutError(f"{error.message}; {await _load_of(connection)}")
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

    async def observer_client(self) -> Client | None:
        record = self._attachment.record()
        return await self._clients_of(record).get() if record.state is EngineState.READY else None

    async def evict(self, timeout: float) -> None:
        await self._attachment.evict(timeout)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        await self._attachment.evict(timeout, leave=True, force=force)

    async def close(self) -> None:
        if self._socket is not None:
            await loop_clients(ENGINE_URL, self._socket).close()


async def _load_of(connection: Connection) -> str:
    """What a request that had no answer in time waited for."""
    try:
        text = await connection.client.request("GET", "/metrics", timeout=LOAD_TIMEOUT_S)
    except RequestError:
        return "the API server does not answer either"
    counts = totals(text.decode())
    running, waiting = (int(counts.get(f"num_requests_{what}", 0)) for what in ("running", "waiting"))
    return f"the engine has {running} requests running and {waiting} waiting in its queue"
