"""Who is loaded where not all models fit: each in its turn, so that a busy one does not keep the others out.

A model that has to be loaded waits for those that asked before it, on the same devices. Where there is no room, as the
models there are busy, one of them gets no new requests until it has left; they wait, and then it is that one's turn to
wait for room. So nobody waits longer than all others' turns take: ``turn_s``, the longest request, and a load, each.
A model that can't leave, as it was pinned meanwhile or other programs use it, is open again, and another one is tried.
Which idle engine leaves is for the supervisors to say (least recently used first, pinned never).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

from shared_engine.errors import EngineStartError, EngineStartTimeoutError, RequestError, VLLMError
from shared_engine.gateway.in_flight import InFlightRequest
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.endpoint import Connection, Route
from shared_engine.request.http_options import HeaderPairs
from shared_engine.request.shared_tasks import SharedTasks
from shared_engine.runtime.progress import StartPhase
from shared_engine.runtime.record import EngineState

if TYPE_CHECKING:
    from shared_engine.gateway.catalog import ServedModel

LOOK_S = 0.25
MORE_S = 10.0
"""A start's own error, after ``start_timeout_s``, says more."""
LEAVE_S = 5.0
"""How long a model that gets no new requests may stay after the last of those from here has ended."""
STRAGGLER_S = 3.0
"""How long a request may wait that took its model for loaded, which has left just then, until it waits for its turn."""
logger = logging.getLogger(__name__)


class Turns:
    """Of the models of one gateway.

    Args:
        models: those that there are.
        turn_s: how long one may stay, at least, once it is loaded.
    """

    def __init__(self, models: Callable[[], Iterable[ServedModel]], turn_s: Callable[[], float]) -> None:
        self._models = models
        self._turn_s = turn_s
        self._loads = SharedTasks()
        self._orders: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def admit(self, model: ServedModel) -> None:
        """Return when the model is loaded, as far as can be seen, and it is not another one's turn.

        Raises:
            VLLMError: it can't be loaded, or was not in its ``start_timeout_s``.
        """
        if model.is_open.is_set() and model.endpoint.is_up():
            return
        timeout_s = model.config.settings.start_timeout_s + MORE_S
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await self._admitted(model)
        except TimeoutError as exc:
            if isinstance(exc, VLLMError) or not limit.expired():
                raise
            raise EngineStartTimeoutError(f"it was not loaded after {timeout_s:g} s: other models are busy") from None

    async def _admitted(self, model: ServedModel) -> None:
        while True:
            await model.is_open.wait()
            if model.endpoint.is_up():
                return
            await self.load(model)
            if model.is_open.is_set():
                return

    async def load(self, model: ServedModel) -> None:
        """Return when it is loaded; all who wait for it wait for one load, which goes on when they leave.

        Raises:
            VLLMError: it can't be.
        """
        await self._loads.run(model, lambda: self._load(model))

    async def _load(self, model: ServedModel) -> None:
        info = await model.endpoint.status(processes=False) if model.takes_turns else None
        if info is None or info.state is EngineState.READY:  # which has not heard of us yet
            await model.make_ready()
            return
        async with self._in_order(info.devices):
            turn = _Turn(model, info.devices, self._models, self._turn_s())
            try:
                await turn.loaded()
            finally:
                turn.end()

    @contextlib.asynccontextmanager
    async def _in_order(self, devices: Iterable[str]) -> AsyncIterator[None]:
        """In the order of asking; supervisors start one engine at a time on a device anyway."""
        async with contextlib.AsyncExitStack() as stack:
            for device in sorted(devices):
                await stack.enter_async_context(self._orders[device])
            yield


class _Turn:
    """One model's, from its load's beginning to its end."""

    def __init__(
        self, model: ServedModel, devices: Iterable[str], models: Callable[[], Iterable[ServedModel]], turn_s: float
    ) -> None:
        self._model = model
        self._devices = set(devices)
        self._models = models
        self._turn_s = turn_s
        self._ends_at = time.monotonic() + model.config.settings.start_timeout_s
        self._closed: dict[ServedModel, float] = {}
        """Those that are to leave, and when they were used from here last, as far as was seen."""

    async def loaded(self) -> None:
        """
        Raises:
            VLLMError: it can't be.
        """
        while True:
            loading = asyncio.create_task(self._model.make_ready())
            try:
                while not (await asyncio.wait({loading}, timeout=LOOK_S))[0]:
                    if await self._waits_for_room():
                        await self._close_next()
                loading.result()
            except EngineStartError as exc:
                if not exc.is_of_device or not await self._made_room():
                    raise
            else:
                return
            finally:
                loading.cancel()  # which ends the waiting, not the start

    def end(self) -> None:
        """All may ask again."""
        for each in self._closed:
            each.is_open.set()

    async def _waits_for_room(self) -> bool:
        info = await _look(self._model)
        return info is not None and info.progress is not None and info.progress.phase is StartPhase.QUEUED

    async def _close_next(self) -> None:
        """Have one of those in the way leave, unless one is about to, or all have only just come."""
        if await self._leaves_one():
            return
        found = await self._in_the_way()
        if found is not None and self._has_had_its_turn(found[1]):
            self._close(found[0])

    async def _leaves_one(self) -> bool:
        """Whether one of those that are closed is about to leave; one that does not is open again."""
        is_leaving = False
        for model, used_at in list(self._closed.items()):
            if not model.endpoint.is_up():
                continue
            info = await _look(model)
            if model.is_used:
                used_at = self._closed[model] = time.monotonic()
            if info is not None and info.pinned:
                self._reopen(model, "it is pinned")
            elif time.monotonic() - used_at > LEAVE_S:
                self._reopen(model, f"it did not leave within {LEAVE_S:g} s")
            else:
                is_leaving = True
        return is_leaving

    async def _made_room(self) -> bool:
        """After a start that lacked memory: True once one that was in the way is used no more, if that is in time."""
        if not any(each.is_used for each in self._closed):
            while (found := await self._in_the_way()) is not None and not self._has_had_its_turn(found[1]):
                if not await self._has_waited():
                    return False
            if found is None:
                return False
            self._close(found[0])
        while used := [each for each in self._closed if each.is_used]:
            self._closed.update(dict.fromkeys(used, time.monotonic()))
            if not await self._has_waited():
                return False
        return True

    async def _has_waited(self) -> bool:
        """A moment; False once all has taken as long as a start may."""
        await asyncio.sleep(LOOK_S)
        return time.monotonic() < self._ends_at

    async def _in_the_way(self) -> tuple[ServedModel, float] | None:
        """Of those on the same devices that may leave the one whose turn began first, and when that was."""
        found = [(each, await _look(each)) for each in self._models() if self._may_leave(each)]
        there = [
            (each, max(info.state_since or 0.0, each.stayed_at))
            for each, info in found
            if info is not None and not info.pinned and self._devices & set(info.devices)
        ]
        return min(there, key=lambda pair: pair[1], default=None)

    def _may_leave(self, model: ServedModel) -> bool:
        return model is not self._model and model.takes_turns and model.is_open.is_set() and model.endpoint.is_up()

    def _has_had_its_turn(self, since: float) -> bool:
        return time.time() - since >= self._turn_s

    def _close(self, model: ServedModel) -> None:
        logger.info("%s gets no new requests: %s waits for room", model.config.id, self._model.config.id)
        model.turns_given += 1
        model.is_open.clear()
        self._closed[model] = time.monotonic()

    def _reopen(self, model: ServedModel, why: str) -> None:
        logger.info("%s gets new requests again: %s", model.config.id, why)
        del self._closed[model]
        model.stayed_at = time.time()
        model.is_open.set()


class RouteInTurn(Route):
    """The way of one request, by the model's turn. A request that is tried again waits for the turn again."""

    def __init__(self, inner: Route, turns: Turns, model: ServedModel, request: InFlightRequest) -> None:
        self.awaited, self.sends_done = inner.awaited, inner.sends_done
        self._inner = inner
        self._turns = turns
        self._model = model
        self._request = request

    async def acquire(self, headers: HeaderPairs = ()) -> Connection:
        if self._model.is_open.is_set():
            connection = self._inner.acquire_now(headers)
            if connection is not None:
                return self._acquired(connection)
        self._request.is_waiting = True
        if not self._model.takes_turns:
            return self._acquired(await self._inner.acquire(headers))
        while True:
            await self._turns.admit(self._model)
            try:
                async with asyncio.timeout(STRAGGLER_S) as limit:
                    connection = await self._inner.acquire(headers)
            except TimeoutError as exc:
                if isinstance(exc, VLLMError) or not limit.expired():
                    raise
            except EngineStartError as exc:  # it was loaded, and has left since to make room
                if not exc.is_of_device or self._model.endpoint.is_up():
                    raise
            else:
                return self._acquired(connection)

    def _acquired(self, connection: Connection) -> Connection:
        self._request.is_waiting = False
        return connection

    def release(self, connection: Connection) -> None:
        self._inner.release(connection)

    async def explain(self, error: RequestError, connection: Connection) -> VLLMError:
        return await self._inner.explain(error, connection)

    def answered(self, connection: Connection) -> None:
        self._inner.answered(connection)

    def can_move(self) -> bool:
        return self._inner.can_move()

    def sum_up(self, error: VLLMError) -> None:
        self._inner.sum_up(error)


async def _look(model: ServedModel) -> EngineInfo | None:
    try:
        return await model.endpoint.status(processes=False)
    except VLLMError:
        return None
