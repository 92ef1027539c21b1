"""An engine of this machine: leased for each request, started on demand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from shared_engine.errors import EngineDiedError, EngineError, EngineStoppedError, VLLMError
from shared_engine.launch.keeping import keep_policy
from shared_engine.launch.spec import engine_spec
from shared_engine.machine.hub_cache import called
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import look_at
from shared_engine.request.client import Client
from shared_engine.request.endpoint import Connection
from shared_engine.request.engine_endpoint import EngineEndpoint
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.log_forwarding import forward_log, stop_forwarding
from shared_engine.request.loop_clients import LoopClients, drop_socket, socket_clients
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.request.supervisor_client import SupervisorClient, supervisor_client
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.record import EngineState, Record, current_record
from shared_engine.settings import EngineSettings

if TYPE_CHECKING:
    from shared_engine.request.engine_socket import EngineSocket

KEEP_TIMEOUT_S = 10.0


class LocalEndpoint(EngineEndpoint):
    """An engine of this machine. Constructing one reads no file and opens nothing."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._policy = keep_policy(settings)
        self._supervisor: SupervisorClient | None = None
        self._resolving = SharedTasks()
        self._socket: str | None = None

    @property
    def key(self) -> str:
        return "" if self._supervisor is None else self._supervisor.spec.key

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        connection = self.acquire_now(headers)
        return connection or await self._started(is_awaited=True)

    def acquire_now(self, headers: HeaderPairs = ()) -> Connection | None:
        self.leave_out(headers)
        supervisor = self._supervisor
        if supervisor is None:
            return None
        self._show_log(supervisor)
        with _our_errors():
            record = supervisor.try_acquire(self._policy)
        if record is None:
            return None
        client = None
        try:
            client = self._clients_of(record.socket).known()
        finally:
            if client is None:
                supervisor.release()
        return None if client is None else self._connection(supervisor, record, client)

    async def make_ready(self, *, is_awaited: bool) -> None:
        """Return when the engine answers, starting it if need be.

        Args:
            is_awaited: a call waits for it, which is shown how far it is.
        """
        self.release(await self._started(is_awaited=is_awaited))

    async def _started(self, *, is_awaited: bool) -> Connection:
        # A bar would stand in the way of the lines.
        shows_bar = is_awaited and self._settings.show_progress and not self._settings.verbose
        with _our_errors():
            supervisor = await self._asked()
            record = await supervisor.acquire(self._policy, show_progress=shows_bar)
        return await self._connected(supervisor, record)

    async def acquire_ready(self, headers: HeaderPairs = ()) -> Connection | None:
        """As ``acquire``, where the engine is ready; None where it would have to be started, or to return."""
        self.leave_out(headers)
        with _our_errors():
            supervisor = await self._asked()
            record = supervisor.try_acquire(self._policy)
        if record is not None:
            return await self._connected(supervisor, record)
        return await self.acquire() if await self.is_ready() else None

    def is_up(self) -> bool:
        return self._supervisor is not None and self._supervisor.is_up()

    async def is_ready(self) -> bool:
        """Whether the engine answers, whoever has started it."""
        with _our_errors():
            record = current_record((await self._asked()).directory)
        return record is not None and record.is_usable

    async def _asked(self) -> SupervisorClient:
        supervisor = self._supervisor or await self._resolved()
        self._show_log(supervisor)
        return supervisor

    def _show_log(self, supervisor: SupervisorClient) -> None:
        if self._settings.verbose:
            forward_log(supervisor.directory.log, called(supervisor.spec.model), self)

    async def _connected(self, supervisor: SupervisorClient, record: Record) -> Connection:
        try:
            client = await self._clients_of(record.socket).get()
        except BaseException:
            supervisor.release()
            raise
        return self._connection(supervisor, record, client)

    def _connection(self, supervisor: SupervisorClient, record: Record, client: Client) -> Connection:
        self.max_model_len = record.max_model_len or self.max_model_len
        self.max_num_seqs = record.max_num_seqs or self.max_num_seqs
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

    def _clients_of(self, socket: str) -> LoopClients[EngineSocket]:
        if self._socket is not None and self._socket != socket:
            drop_socket(self._socket)  # of a start before
        self._socket = socket
        return socket_clients(socket)

    async def death_of(self, connection: Connection) -> EngineDiedError | EngineStoppedError | None:
        assert self._supervisor is not None
        return await self._supervisor.death_of(connection.incarnation)

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

    async def keep(self, *, idle_ttl_s: float, pinned: bool | None = None) -> None:
        with _our_errors():
            await (await self._resolved()).control.keep(KEEP_TIMEOUT_S, idle_ttl_s=idle_ttl_s, pinned=pinned)

    async def pin(self, *, is_pinned: bool) -> None:
        own = keep_policy(self._settings)
        self._policy = replace(own, pinned=True, idle_ttl_s=math.inf) if is_pinned else own.unpinned()
        await self.keep(idle_ttl_s=self._policy.idle_ttl_s, pinned=is_pinned)

    async def evict(self, timeout: float) -> None:
        with _our_errors():
            await (await self._resolved()).control.evict(timeout)

    async def shutdown(self, timeout: float, *, force: bool) -> None:
        with _our_errors():
            await (await self._resolved()).control.shutdown(timeout, force=force)

    async def close(self) -> None:
        if self._socket is not None:
            await socket_clients(self._socket).close()
        if self._settings.verbose and (supervisor := self._supervisor) is not None:
            await in_a_thread(lambda: stop_forwarding(supervisor.directory.log, self))


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """What the kernel refuses inside, as without a file left, as our error."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, VLLMError):
            raise
        raise EngineError(f"the engine can't be asked for: {exc}") from exc
