"""What an Engine is beside its requests: settings, the endpoint behind them, and its start, state and end.

Knows nothing of what is asked of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shared_engine.errors import RequestError, SettingsError
from shared_engine.gpu import alert_counts
from shared_engine.launch.replica_sets import check_replicas
from shared_engine.machine.home import expanded
from shared_engine.model_files.folder import inputs
from shared_engine.model_files.weights import has_weights
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.params import GenerationParams
from shared_engine.request.about_model import AboutModel, ask_hub, ask_servers
from shared_engine.request.bodies import Request
from shared_engine.request.endpoint import Endpoint
from shared_engine.request.endpoints import endpoint_of
from shared_engine.request.fleet import Fleet
from shared_engine.request.remote_fleet import RemoteFleet
from shared_engine.request.replica_endpoint import ReplicaEndpoint
from shared_engine.request.reproducible import seed_of
from shared_engine.request.sending import Requests, metrics_of
from shared_engine.request.tally import stats_of, tally_of
from shared_engine.request.threads import in_a_thread
from shared_engine.request.twins import blocking
from shared_engine.runtime.directory import check_root
from shared_engine.runtime.life_stats import LifeStats, added, lives_together
from shared_engine.runtime.metrics import counters as counters_of
from shared_engine.runtime.metrics import totals
from shared_engine.runtime.record import EngineState
from shared_engine.settings import NOT_PICKLED, EngineSettings
from shared_engine.stats import EngineStats

if TYPE_CHECKING:
    from typing import Self


class Lifecycle:
    """See the module's docstring; Engine has the promises."""

    def __init__(self, settings: EngineSettings | None = None, **fields: Any) -> None:
        if settings is not None and fields:
            raise TypeError(f"pass EngineSettings or keywords, not both (got {', '.join(sorted(fields))} as well)")
        self.settings = settings if settings is not None else EngineSettings(**fields)
        if self.settings.modes == ("local",):
            check_root()
        check_replicas(self.settings)
        self._defaults = GenerationParams(**self.settings.sampling_defaults)
        self.reproducible_seed = seed_of(self.settings)
        """Of every request, with the setting ``reproducible``."""
        self._made_requests: Requests | None = None
        self._context_window: int | None = None

    def __repr__(self) -> str:
        where = f"base_url={self.settings.base_url!r}, " if self.settings.is_remote else ""
        return f"Engine({where}model={self.settings.model!r})"

    def __copy__(self) -> Self:
        copied = type(self)(self.settings)  # frozen; a copy in this process keeps the secrets
        copied.reproducible_seed = self.reproducible_seed
        return copied

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        names = self.settings.model_fields_set - set(NOT_PICKLED)
        return _engine_of, (type(self), {name: getattr(self.settings, name) for name in names})

    @property
    def _requests(self) -> Requests:
        # Not a cached_property: before Python 3.12 it holds a lock, which a child forked meanwhile would never get.
        if self._made_requests is None:
            settings = self.settings
            self._made_requests = Requests(
                endpoint_of(settings),
                settings.timeout,
                settings.max_retries,
                self._fit,
                reshapes=settings.merge_messages != "never",
            )
        return self._made_requests

    async def _fit(self, request: Request) -> Request:
        """See ``Requests``."""
        return request

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together: by the settings, the model's files, or an answer that a server gave.

        None where that is not known; asks no server.
        """
        reported = None if self._made_requests is None else self._made_requests.endpoint.max_model_len
        if reported is None and self._context_window is None:  # looked for until known: adapters ask in every call
            self._context_window = self.settings.context_window()
        return reported or self._context_window

    def about_model(self) -> AboutModel:
        """The context window, and what the model takes beside text.

        What neither settings nor files say is asked for, once for all objects of the process: of a remote server its
        list of models; of the hub the config of a model that was not downloaded yet, unless HF_HUB_OFFLINE is set.
        That takes some seconds at most, and starts no engine. What stays unknown is None, and known after the first
        request.
        """
        settings, window = self.settings, self.context_window
        folder = settings.model_folder()
        if folder is not None or (settings.is_remote and window is not None):
            return AboutModel(window, None if folder is None else inputs(folder))
        if not settings.is_remote:
            told = ask_hub(settings)
            self._context_window = window or told.context_window
            return told._replace(context_window=self._context_window)
        endpoint = self._requests.endpoint
        told = ask_servers(endpoint, settings)
        endpoint.max_model_len = endpoint.max_model_len or told.context_window
        return told._replace(context_window=self.context_window)

    @property
    def fleet(self) -> Fleet:
        """The servers of a fleet, to which others can be added.

        Raises:
            SettingsError: ``base_url`` names one server, or none.
        """
        endpoint = self._requests.endpoint
        if isinstance(endpoint, ReplicaEndpoint):
            raise SettingsError(
                "replicas are no fleet that others can be added to: which there are follows from the settings, and "
                "which of them run from the load (status().members)"
            )
        if not isinstance(endpoint, RemoteFleet):
            raise SettingsError("this is no fleet: pass base_url=[...] with several servers")
        return endpoint.fleet

    @property
    def _servers(self) -> int:
        """How many have a share of the requests."""
        if self.settings.is_replicated:
            return self.settings.replica_count
        return max(1, len(self.fleet.pool.members)) if self.settings.is_fleet else 1

    # ---- life

    async def awarmup(self) -> None:
        """Return when the engine is ready, starting it if need be. A remote server is only asked for its health."""
        await self._requests.check_health()

    warmup = blocking(awarmup)

    async def _afetched(self) -> None:
        """Return when the model's files are on this machine, for which a local engine may have to be started."""
        if self.settings.is_remote or await in_a_thread(expanded(self.settings.model or "").exists):
            return
        folder = await in_a_thread(self.settings.model_folder)
        if folder is None or not await in_a_thread(partial(has_weights, folder)):
            await self.awarmup()

    async def ais_ready(self) -> bool:
        """True when a request would be answered at once. Starts nothing and keeps nothing awake."""
        return (await self.astatus()).state is EngineState.READY

    is_ready = blocking(ais_ready)

    async def astatus(self, *, processes: bool = False) -> EngineInfo:
        """The engine as it is now. Starts nothing and keeps nothing awake.

        Args:
            processes: look at its processes and their memory too.
        """
        return await self._requests.endpoint.status(processes=processes)

    status = blocking(astatus)

    async def ametrics(self) -> dict[str, float]:
        """vLLM's gauges and counters by name, such as ``num_requests_running``; empty while no server is up.

        On a remote server they count other users' requests too.
        """
        return totals(await self._requests.metrics())

    metrics = blocking(ametrics)

    async def astats(self) -> EngineStats:
        """What requests of this process, and the starts of the engine, have come to. Starts nothing.

        Of a remote server the requests of this process, and its own counters. Objects with equal settings share one
        engine, and so its statistics.
        """
        return replace(await _stats_of(self._requests.endpoint), gpu_alerts=alert_counts())

    stats = blocking(astats)

    def reset_stats(self) -> None:
        """Count this process's requests from zero. The engine's own numbers stay."""
        for name in self._requests.endpoint.counted_together():
            tally_of(name).reset()

    async def aevict(self, timeout: float = 30.0) -> None:
        """Take the model out of memory; return when its processes are gone. The next request brings it back.

        Raises:
            EngineBusyError: requests, of any process, were in flight for all of ``timeout`` seconds.
            EngineError: the engine is remote.
        """
        await self._requests.endpoint.evict(timeout)

    evict = blocking(aevict)

    async def ashutdown(self, timeout: float = 30.0, *, force: bool = False) -> None:
        """As ``aevict``, and leave no process behind: neither the standby nor the supervisor.

        Args:
            force: do not wait for requests in flight; they fail.
        """
        await self._requests.endpoint.shutdown(timeout, force=force)

    shutdown = blocking(ashutdown)

    async def aclose(self) -> None:
        """Close this loop's connections. They are shared by all objects with equal settings: those that carry a request
        are closed when it has ended. The engine itself is shared, too: it stays until idle.
        """
        await self._requests.endpoint.close()

    close = blocking(aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _engine_of(kind: type[Lifecycle], given: dict[str, Any]) -> Lifecycle:
    """The engine of a pickle: its settings, with the secret of the process that unpickles it."""
    return kind(**given)


async def _stats_of(endpoint: Endpoint, member: str | None = None) -> EngineStats:
    named = await endpoint.member_endpoints()
    members = tuple(await asyncio.gather(*(_stats_of(each, name) for name, each in named.items())))
    life, counters = await _numbers_of(endpoint, member) if not members else _numbers_together(members)
    requests = stats_of(endpoint.counted_together())
    return EngineStats(requests=requests, life=life, counters=counters, member=member, members=members)


async def _numbers_of(endpoint: Endpoint, member: str | None) -> tuple[LifeStats | None, dict[str, float]]:
    info, counters = await endpoint.status(processes=False), dict[str, float]()
    try:
        counters = counters_of(await metrics_of(endpoint))
    except RequestError:
        if member is None:  # of a fleet, the others' are worth having
            raise
    if info.mode == "remote":
        return None, counters
    return info.life, added(info.life.counters, counters)


def _numbers_together(members: Sequence[EngineStats]) -> tuple[LifeStats | None, dict[str, float]]:
    counters: dict[str, float] = {}
    for each in members:
        counters = added(counters, each.counters)
    lives = [each.life for each in members if each.life is not None]
    return lives_together(lives) if lives else None, counters
