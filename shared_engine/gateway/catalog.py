"""The models of a gateway as they are served, and what replaces them when the configuration is read again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_engine.errors import VLLMError
from shared_engine.gateway.capabilities import capabilities_of
from shared_engine.gateway.config import GatewayConfig, Key, ModelConfig, Target
from shared_engine.gateway.in_flight import InFlight, InFlightRequest
from shared_engine.gateway.keeping import Kept, hand_on
from shared_engine.gateway.limits import Places
from shared_engine.gateway.own_log import OwnLog
from shared_engine.gateway.refusals import model_not_found
from shared_engine.gateway.turns import RouteInTurn, Turns
from shared_engine.launch.keeping import keep_policy
from shared_engine.model_files.changes import while_unchanged
from shared_engine.request.endpoints import endpoint_of
from shared_engine.request.forwarded_answer import ForwardedAnswer
from shared_engine.request.forwarding import ForwardedRequest, Forwarding
from shared_engine.request.sending import Requests
from shared_engine.runtime.record import EngineState
from shared_engine.runtime.redacted import redacted

LOOK_S = 2.0
"""How long a look at a server that is not ours may take."""
PRELOAD_AGAIN_S = 30.0
UNLOAD_S = 5.0
_LOADED = (EngineState.READY.value, EngineState.ASLEEP.value)
logger = logging.getLogger(__name__)


class ServedModel:
    """One model: where its requests go, and how many at once.

    Attributes:
        in_flight: the requests of all models.
        requests: so many came while it was served, and have not ended.
        places: how many run at once; of a model that was changed, the same as before.
        is_open: its requests may begin: it is no other model's turn (turns.py).
        turns_given: how often they had to wait, so that another one got room.
        stayed_at: when it was seen last that it did not leave though they waited, in seconds since the epoch.
        takes_turns: it is loaded on this machine, and nowhere else.
        kept: how long it is to stay, as was said last.
    """

    def __init__(self, config: ModelConfig, in_flight: InFlight, turns: Turns) -> None:
        self.config = config
        self.in_flight = in_flight
        self.requests = 0
        self._turns = turns
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.turns_given = 0
        self.stayed_at = 0.0
        self.kept = self.declared
        settings = config.settings
        self.takes_turns = settings.modes == ("local",)
        self.endpoint = endpoint_of(settings)
        self._forwarding = Forwarding(self.endpoint, settings)
        self.places = Places(config.id, config.fields.concurrency_limit, config.fields.queue_limit)
        self._capabilities: Callable[[Path], list[str] | None] = while_unchanged(lambda _: capabilities_of(settings))
        self._requests = Requests(self.endpoint, settings.timeout, settings.max_retries)

    @property
    def declared(self) -> Kept:
        """How long it is to stay, as the configuration says."""
        return Kept(self.config.settings.pinned, self.config.settings.idle_ttl_s)

    @property
    def context_window(self) -> int | None:
        return self.endpoint.max_model_len or self.config.settings.context_window()

    def capabilities(self) -> list[str] | None:
        """What it can be asked for, and takes; None where that is not known before its server is asked."""
        folder = self.config.settings.model_folder()
        return None if folder is None else self._capabilities(folder)

    @property
    def is_used(self) -> bool:
        """Requests from here run on it."""
        return any(each.model == self.config.id and not each.is_waiting for each in self.in_flight)

    @contextlib.contextmanager
    def listed(self, request: InFlightRequest) -> Iterator[None]:
        """In the list of all, until it ends."""
        self.requests += 1
        try:
            with self.in_flight.listed(request):
                yield
        finally:
            self.requests -= 1

    async def answer(self, request: ForwardedRequest, listed: InFlightRequest) -> ForwardedAnswer:
        """To a request, once the model is loaded, and as ``Forwarding.forward``.

        Args:
            listed: the request, in the list of all.
        """
        return await self._forwarding.forward(request, lambda route: RouteInTurn(route, self._turns, self, listed))

    async def load(self) -> None:
        """Return when it is ready, in its turn.

        Raises:
            VLLMError: it can't be.
        """
        await self._turns.load(self)

    async def make_ready(self) -> None:
        """The same, whoever's turn it is."""
        await self._requests.check_health()

    async def keep_alive(self, seconds: float | None) -> None:
        """Keep it for so long after the end of its last request, until its next load; None changes nothing.

        A model's server that is not ours keeps it as it likes. One that is pinned may stay for longer, not leave
        earlier: that is for admins alone.
        """
        if seconds is None or self.config.settings.is_remote:
            return
        if self.kept.is_pinned and seconds < self.kept.ttl_s:
            return
        try:
            await self.endpoint.keep(idle_ttl_s=seconds)
        except VLLMError as exc:
            logger.warning("%s is kept as before, not for keep_alive = %g s: %s", self.config.id, seconds, exc)
        else:
            self.kept.ttl_s = seconds

    async def pin(self, *, is_pinned: bool) -> None:
        """Keep it, now and after each load, whatever its ``ttl`` and other models' need; or no longer.

        Raises:
            VLLMError: it is not ours to keep.
        """
        await self.endpoint.pin(is_pinned=is_pinned)
        self.kept.is_pinned = is_pinned
        self.kept.ttl_s = math.inf if is_pinned else keep_policy(self.config.settings).unpinned().idle_ttl_s

    async def is_loaded(self) -> bool:
        """Whether it can be asked without being loaded for it, as far as is known here; a remote one always can."""
        return self.config.settings.is_remote or await self.state() in _LOADED

    async def state(self) -> str | None:
        """Its state now; None where that can't be told."""
        try:
            async with asyncio.timeout(LOOK_S):
                return (await self.endpoint.status(processes=False)).state.value
        except (VLLMError, TimeoutError):
            return None


class Catalog:
    """All models, of the configuration that holds now.

    Attributes:
        config: that one.
        in_flight: the requests of all of them.
        log: this process's own.
        leaving: set when the gateway is to leave: no new requests, and streams that would go on for ever end.
        unloads_at_end: models of this machine then leave memory, where nobody else uses them.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.began = int(time.time())
        self.in_flight = InFlight()
        self.log = OwnLog()
        self.leaving = asyncio.Event()
        self.unloads_at_end = False
        self._turns = Turns(lambda: (*self.models.values(),), lambda: self.config.fields.turn_s)
        self.models = {id_: self._served(model) for id_, model in config.models.items()}
        self._preloads: dict[str, asyncio.Task[None]] = {}
        self._handing_on: dict[asyncio.Task[None], ServedModel] = {}

    def replace(self, config: GatewayConfig) -> None:
        """Serve by another configuration from now on. Requests in flight end as they began.

        A model that stayed as it was is not touched. The engine of one that was changed is kept as the file says now,
        or as was said by HTTP where the file says the same of it as before. Where it is gone, the engine leaves when it
        is idle.
        """
        kept = {id_: model for id_, model in self.models.items() if config.models.get(id_) == model.config}
        replaced = [model for id_, model in self.models.items() if id_ not in kept]
        self.models = {id_: kept.get(id_) or self._served(model) for id_, model in config.models.items()}
        self.config = config
        for model in replaced:
            if (new := self.models.get(model.config.id)) is not None:
                new.is_open = model.is_open  # whose turn it is opens the old one, and the engine may be the same
                new.places = model.places
                new.places.limit_to(new.config.fields.concurrency_limit, new.config.fields.queue_limit)
                if new.declared == model.declared:
                    new.kept = model.kept
            task = asyncio.create_task(hand_on(model, lambda: (*self.models.values(),)))
            self._handing_on[task] = model
            task.add_done_callback(lambda done: self._handing_on.pop(done, None))
        for id_, task in list(self._preloads.items()):
            if id_ not in kept:
                task.cancel()
                del self._preloads[id_]
        self.preload()

    def _served(self, model: ModelConfig) -> ServedModel:
        return ServedModel(model, self.in_flight, self._turns)

    # ---- which

    def find(self, name: str | None, key: Key | None) -> tuple[ServedModel, Target]:
        """What a request means by its model's name; without one, the only model there is.

        Raises:
            RefusedError: there is no such model, or the key does not open it, which looks the same.
        """
        allowed = self.allowed(key)
        meant = next(iter(self.models)) if name is None and len(self.models) == 1 else name
        if meant is None or meant not in allowed:
            listed = [id_ for id_ in allowed if id_ in self.models and not self.models[id_].config.fields.unlisted]
            raise model_not_found(name, listed)
        target = self.config.names[meant]
        return self.models[target.model], target

    def opened(self, key: Key | None) -> dict[ServedModel, str]:
        """The models that the key opens, listed or not, each with a name that it opens: the model's own if it can."""
        found: dict[ServedModel, str] = {}
        for name in self.allowed(key):  # a model's own is the first of its names
            found.setdefault(self.models[self.config.names[name].model], name)
        return found

    def allowed(self, key: Key | None) -> list[str]:
        """Names that the key opens: those in it; of a model all."""
        names = self.config.names
        if key is None or key.models is None:
            return list(names)
        return [name for name, target in names.items() if name in key.models or target.model in key.models]

    # ---- what there is

    async def listed(self, key: Key | None) -> list[dict[str, Any]]:
        """Models and LoRA adapters, as ``/v1/models`` shows them."""
        allowed, shown = self.allowed(key), self.shown(key)
        models = list(dict.fromkeys(model for _, model in shown))
        states = dict(zip(models, await asyncio.gather(*(model.state() for model in models)), strict=True))
        return [self._entry(name, model, states[model], allowed) for name, model in shown]

    def shown(self, key: Key | None) -> list[tuple[str, ServedModel]]:
        """Models and LoRA adapters that the key opens and that are listed, each with its model. What it opens by an
        alias only has that name.
        """
        allowed = self.allowed(key)
        return [
            (name, model)
            for model in self.models.values()
            if not model.config.fields.unlisted
            for name in _own_names(model.config, allowed)
            if name in allowed
        ]

    async def entry(self, name: str, key: Key | None) -> dict[str, Any]:
        """One of them, by any name, also one that is not listed.

        Raises:
            RefusedError: there is none.
        """
        model, target = self.find(name, key)
        own, state, allowed = target.adapter or model.config.id, await model.state(), self.allowed(key)
        return self._entry(own if own in allowed else name, model, state, allowed)

    def _entry(self, name: str, model: ServedModel, state: str | None, allowed: Sequence[str]) -> dict[str, Any]:
        fields, id_ = model.config.fields, model.config.id
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self.began,
            "owned_by": "vllm-local",
            "parent": None if name == id_ or id_ not in allowed else id_,
            "max_model_len": model.context_window,
            "status": {"value": state},
            "capabilities": model.capabilities(),
            "pinned": model.kept.is_pinned,
            "aliases": [alias for alias in fields.aliases if alias in allowed] if name == id_ else [],
            "requests": {"running": model.places.taken, "waiting": model.places.waiting},
        }
        told: Mapping[str, Any] = {
            "name": fields.name, "description": fields.description, "metadata": dict(fields.metadata) or None
        }  # fmt: skip
        return entry | {each: value for each, value in told.items() if value is not None}

    # ---- what is loaded at the start

    @property
    def is_preloaded(self) -> bool:
        """All models with ``preload`` were loaded."""
        return all(task.done() for task in self._preloads.values())

    def preload(self) -> None:
        """Begin to load what is to be loaded, and was not."""
        for id_, model in self.models.items():
            if model.config.fields.preload and id_ not in self._preloads:
                self._preloads[id_] = asyncio.create_task(_loaded(model))

    async def close(self) -> None:
        """End what is done here, and close the connections. Engines stay, as their settings say."""
        tasks, replaced = (*self._preloads.values(), *self._handing_on), (*self._handing_on.values(),)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.unloads_at_end:
            await asyncio.gather(*map(_unloaded, self.models.values()))
        for model in (*self.models.values(), *replaced):
            await model.endpoint.close()


def _own_names(model: ModelConfig, allowed: Sequence[str]) -> tuple[str, ...]:
    return (*((model.id,) if model.id in allowed else model.fields.aliases), *model.adapters)


async def _unloaded(model: ServedModel) -> None:
    if model.config.settings.is_remote:
        return
    try:
        await model.endpoint.evict(UNLOAD_S)
    except VLLMError as exc:
        logger.warning("%s stays loaded: %s", model.config.id, redacted(str(exc)))


async def _loaded(model: ServedModel) -> None:
    """Load it; where that fails, again after a while: nothing here needs a restart."""
    while True:
        try:
            await model.load()
        except VLLMError as exc:
            logger.warning("%s was not loaded: %s", model.config.id, redacted(str(exc)))
            await asyncio.sleep(PRELOAD_AGAIN_S)
        else:
            logger.info("%s is loaded", model.config.id)
            return
