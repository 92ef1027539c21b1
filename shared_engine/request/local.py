"""An engine of this machine: leased for each request, started on demand."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from shared_engine.errors import (
    EngineBusyError,
    EngineError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.launch.keeping import keep_policy
from shared_engine.launch.spec import engine_spec
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import look_at
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection, Endpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.loop_clients import LoopClients, drop_socket, loop_clients
from shared_engine.request.refusals import says_engine_busy
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.supervisor_client import SupervisorClient, supervisor_client
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.metrics import totals
from shared_engine.runtime.record import EngineState, current_record
from shared_engine.settings import EngineSettings

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 2.0
ENGINE_URL = "http://engine"  # over a Unix socket the host is a matter of form


class LocalEndpoint(Endpoint):
    """An engine of this machine. Constructing one reads no file and opens nothing."""

    awaited = "the engine to be ready"
    sends_done = True

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._policy = keep_policy(settings)
        self._supervisor: SupervisorClient | None = None
        self._resolving = SharedTasks()
        self._socket: str | None = None

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        if headers:  # of other services, which frameworks give to any model; or of a model that was remote until now
            logger.debug("a local engine gets no extra_headers: %s", ", ".join(name for name, _ in headers))
        with _our_errors():
            supervisor = self._supervisor or await self._resolved()
            record = await supervisor.acquire(self._policy, show_progress=self._settings.show_progress)
        try:
            client = await self._clients_of(record.socket).get()
        except BaseException:
            supervisor.release()
            raise
        self.max_model_len = record.max_model_len or self.max_model_len
        return Connection(client, supervisor.spec.model, record.start_number)

    def release(self, connection: Connection) -> None:  # noqa: ARG002
        assert self._supervisor is not None
        self._supervisor.release()

    async def _resolved(self) -> SupervisorClient:
        """Find the interpreter, read the model's files: in a thread, as disks can be slow."""

        async def resolve() -> SupervisorClient:
            return supervisor_client(await in_a_thread(lambda: engine_spec(self._settings)))

        if self._supervisor is None:
            self._supervisor = await self._resolving.run("spec", resolve)
        return self._supervisor

    def _clients_of(self, socket: str) -> LoopClients:
        if self._socket is not None and self._socket != socket:
            drop_socket(ENGINE_URL, self._socket)  # of a start before
        self._socket = socket
        return loop_clients(ENGINE_URL, socket)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        assert self._supervisor is not None
        if says_engine_busy(error):
            limit = self._settings.engine_args.get("max_num_queued_reqs")
            return EngineBusyError(f"{connection.model} has no room for a request (max_num_queued_reqs = {limit})")
        # vLLM has many words for an engine that is going, and some for requests that it reports as its own fault.
        is_of_request = isinstance(error, ServerError) and error.should_retry is False
        if isinstance(error, ServerConnectionError | ServerError) and not is_of_request:
            return await self._supervisor.death_of(connection.incarnation) or error
        if isinstance(error, RequestTimeoutError):
            load = await _load_of(connection)
            died = None if load is not None else await self._supervisor.death_of(connection.incarnation)
            return died or RequestTimeoutError(f"{error.message}; {load or 'the API server does not answer either'}")
        return error

    async def status(self, *, processes: bool) -> EngineInfo:
        with _our_errors():
            supervisor = await self._resolved()
            return await in_a_thread(lambda: look_at(supervisor.directory, supervisor.spec, processes=processes))

    async def observer_client(self) -> Client | None:
        with _our_errors():
            record = current_record((await self._resolved()).directory)
        if record is None or record.state is not EngineState.READY:
            return None
        return await self._clients_of(record.socket).get()

    async def evict(self, timeout: float) -> None:
        with _our_errors():
            await (await self._resolved()).control.evict(timeout)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        with _our_errors():
            await (await self._resolved()).control.shutdown(timeout, force=force)

    async def close(self) -> None:
        if self._socket is not None:
            await loop_clients(ENGINE_URL, self._socket).close()


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """What the kernel refuses inside, as without a file left, as our error."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, VLLMError):
            raise
        raise EngineError(f"the engine can't be asked for: {exc}") from exc


async def _load_of(connection: Connection) -> str | None:
    """What a request that had no answer in time waited for; None where the server answers nothing else either."""
    try:
        text = await connection.client.request("GET", "/metrics", timeout=LOAD_TIMEOUT_S)
    except RequestError:
        return None
    counts = totals(text.decode())
    running, waiting = (int(counts.get(f"num_requests_{what}", 0)) for what in ("running", "waiting"))
    return f"the engine has {running} requests running and {waiting} waiting in its queue"
