"""Where requests go: the one seam between a request and a server.

An endpoint gives a connection for one request, says what a failed request means, and tells what it knows of itself.
Retries, deadlines and batches stand above it, once for all kinds. Only a local endpoint starts or ends anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import msgspec

from shared_engine.errors import ModelNotFoundError, RequestError, VLLMError
from shared_engine.request.client import Client
from shared_engine.runtime.progress import Progress
from shared_engine.runtime.record import EngineState

PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Connection:
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


class Endpoint(ABC):
    """See the module's docstring.

    Attributes:
        max_model_len: the limit that the server told by the way; None as long as it did not.
    """

    max_model_len: int | None = None

    @abstractmethod
    async def acquire(self) -> Connection:
        """A connection to a server that is ready, for one request; give it back with ``release``.

        Raises:
            VLLMError: there is none to be had.
        """

    @abstractmethod
    def release(self, connection: Connection) -> None:
        """The request has ended, however it did."""

    @abstractmethod
    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        """What a failed request means here: the error itself, or the death of the engine."""

    @abstractmethod
    async def status(self) -> EngineStatus:
        """The engine as it is now. Starts nothing and keeps nothing awake."""

    @abstractmethod
    async def observer_client(self) -> Client | None:
        """A client that holds no lease, to look at a server that is up; None if none is."""

    @abstractmethod
    async def evict(self, timeout: float) -> None:
        """Return when the model has left memory.

        Raises:
            EngineBusyError: requests were in flight for all of ``timeout`` seconds.
            EngineError: the engine is not ours to end.
        """

    @abstractmethod
    async def shutdown(self, timeout: float, *, force: bool) -> None:
        """As ``evict``, and leave no process behind; with ``force`` requests in flight fail."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the running loop's connections."""


class AnotherModelError(ModelNotFoundError):
    """The server has not the model any more that was its first one: it was started with another one, which will do."""
