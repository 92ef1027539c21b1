"""Where requests go: the one seam between a request and a server.

An endpoint gives a connection for one request, explains what a failed request means, and describes itself.
Retries, deadlines and batches stand above it, once for all kinds. Only a local endpoint starts or ends anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from shared_engine.errors import EngineError, ModelNotFoundError, RequestError, VLLMError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.client import Client
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.routes import HEALTH
from shared_engine.request.tally import EngineName

PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Connection:
    """A server for the time of one request.

    Attributes:
        client: connections of the running event loop.
        model: as the server names it.
        incarnation: which start of a local engine this is; of a remote one, how often it had another model.
        name: of the adapter that answers, as the caller has it; None for the model itself.
    """

    client: Client
    model: str
    incarnation: int = 0
    name: str | None = None


class Route(ABC):
    """Where one request goes.

    Attributes:
        awaited: what ``acquire`` waits for.
        sends_done: whether a stream that ends without ``[DONE]`` was cut off, as vLLM's is.
    """

    awaited = "the server's list of models"
    sends_done = False

    @abstractmethod
    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        """A connection to a server that is ready, for one request; give it back with ``release``.

        Args:
            headers: of this call; a local engine gets none.

        Raises:
            VLLMError: no server is available.
        """

    def acquire_now(self, headers: HeaderPairs = ()) -> Connection | None:  # noqa: ARG002
        """As ``acquire``, where nothing has to be waited for; None where something may have to be."""
        return None

    @abstractmethod
    def release(self, connection: Connection) -> None:
        """The request has ended, whether it succeeded or failed."""

    @abstractmethod
    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        """What a failed request means here: the error itself, or the death of the engine."""

    def answered(self, connection: Connection) -> None:  # noqa: B027
        """An answer has begun: the server is well."""

    def can_move(self) -> bool:
        """Whether the next try goes to a server that this request has not failed on."""
        return False

    def sum_up(self, error: VLLMError) -> None:  # noqa: B027
        """Add to the last error what the other servers said that were tried."""


class Endpoint(Route):
    """See the module's docstring.

    Attributes:
        max_model_len: the server's limit in tokens, once an answer had it; None before.
        max_num_seqs: how many requests one server runs at once, once it was told; None before, and of remote ones.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None

    @property
    @abstractmethod
    def name(self) -> EngineName:
        """What its requests are counted by."""

    def counted_by(self, connection: Connection | None) -> EngineName:  # noqa: ARG002
        """What a request is counted by that has ended.

        Args:
            connection: the last one that it had; None where it had none.
        """
        return self.name

    def counted_together(self) -> list[EngineName]:
        """All that its requests were counted by."""
        return [self.name]

    async def member_endpoints(self) -> dict[str, Endpoint]:
        """By name, of a fleet."""
        return {}

    def for_request(
        self,
        path: str = "",  # noqa: ARG002
        body: bytes = b"",  # noqa: ARG002
        session: str | None = None,  # noqa: ARG002
        model: str | None = None,  # noqa: ARG002
    ) -> Route:
        """The way of one request.

        Args:
            session: what it belongs to; requests of one session go to one server. Default: by their beginning.
            model: that it names, or adapter; None for the endpoint's own.
        """
        return self

    async def check_health(self, client: Client) -> None:
        """Return if the server of ``client`` is well.

        Raises:
            RequestError: it is not, or can't be asked.
        """
        await client.request("GET", HEALTH, timeout=PROBE_TIMEOUT_S)

    def is_up(self) -> bool:
        """Whether requests are answered at once, as far as that shows without asking anybody. Fast."""
        return True

    # ---- models and adapters

    @property
    def adapters(self) -> dict[str, str]:
        """Folder by name of the adapters that requests may name, as far as that is known here."""
        return {}

    def check_model(self, name: str, parameter: str) -> None:
        """Refuse what is known not to be served, before anything starts.

        Args:
            name: of a model or adapter.
            parameter: of the request, which has it.

        Raises:
            InvalidInputError: neither is there.
        """

    async def serving(self, name: str, connection: Connection) -> Connection:
        """The connection, to the model or adapter ``name``, which the server has from now on.

        Raises:
            VLLMError: it can't have it.
        """
        return replace(connection, model=name)

    async def check_adapter(self, name: str, path: str) -> None:
        """Refuse what ``load_adapter`` would, as far as that shows before anything starts.

        Raises:
            InvalidInputError: there is no adapter there, or it does not fit.
        """

    @abstractmethod
    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:
        """Have the server load an adapter, which requests may name from now on.

        Raises:
            RequestError: the server does not take it.
        """

    @abstractmethod
    async def unload_adapter(self, name: str) -> None:
        """Have the server forget an adapter. Starts nothing."""

    @abstractmethod
    async def status(self, *, processes: bool) -> EngineInfo:
        """The engine as it is now. Starts nothing and keeps nothing awake.

        Args:
            processes: look at its processes and their memory too.
        """

    @abstractmethod
    async def observer_client(self) -> Client | None:
        """A client that holds no lease, to look at a server that is up; None while there is none."""

    async def observer_clients(self) -> list[Client]:
        """The same of all servers."""
        client = await self.observer_client()
        return [] if client is None else [client]

    async def keep(self, *, idle_ttl_s: float, pinned: bool | None = None) -> None:  # noqa: ARG002
        """Keep what is loaded for so long after its last request, until its next start. Starts nothing.

        Args:
            pinned: or not, from now on; None changes nothing.

        Raises:
            EngineError: the engine is not ours to keep.
        """
        raise EngineError(
            f"{self.name.model or self.name.engine} is not an engine of this machine: its server keeps it"
        )

    async def pin(self, *, is_pinned: bool) -> None:  # noqa: ARG002
        """From now on, and in the starts to come: keep it until it is unpinned or evicted by name; or no longer.

        Starts nothing.

        Raises:
            EngineError: the engine is not ours to keep.
        """
        await self.keep(idle_ttl_s=0.0)

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
        """Close the running loop's connections."""


class AnotherModelError(ModelNotFoundError):
    """The server no longer has the model that was its first one: it was restarted with another one.

    From now on that one is used.
    """
