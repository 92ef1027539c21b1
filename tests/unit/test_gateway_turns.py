"""Models in turn, on a device that has no room for all: who waits for whom, and for how long at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from shared_engine.errors import EngineStartError, EngineStartTimeoutError
from shared_engine.gateway import turns as module
from shared_engine.gateway.in_flight import InFlight, InFlightRequest
from shared_engine.gateway.turns import RouteInTurn, Turns
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.endpoint import Route
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import EngineState

LOAD_S = 0.02
GRACE_S = 0.02


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.005)
    monkeypatch.setattr(module, "MORE_S", 0.0)
    monkeypatch.setattr(module, "STRAGGLER_S", 0.1)
    monkeypatch.setattr(module, "LEAVE_S", 0.05)


class Device:
    """Has room for so many models; idle ones leave for others, but not before those have come who waited for them.

    Args:
        queues: a model for which there is no room waits; else its load fails.
    """

    def __init__(self, room: int = 1, *, queues: bool = True) -> None:
        self.room = room
        self.queues = queues
        self.loaded: dict[Model, float] = {}
        self.loads: list[str] = []

    async def load(self, model: Model) -> None:
        if model in self.loaded:
            return
        model.is_queued = True
        try:
            while len(self.loaded) >= self.room and not self._evicted():
                if not self.queues:
                    raise EngineStartError("no memory", is_of_device=True)
                await asyncio.sleep(0.002)
        finally:
            model.is_queued = False
        self.loaded[model] = time.time() + LOAD_S
        model.was_used = False
        await asyncio.sleep(LOAD_S)
        self.loads.append(model.config.id)

    def _evicted(self) -> bool:
        idle = [
            each
            for each, ready_at in self.loaded.items()
            if not each.leases and not each.is_pinned and (each.was_used or time.time() > ready_at + GRACE_S)
        ]
        if idle:
            del self.loaded[idle[0]]
        return bool(idle)


class Model:
    """As much of a served model as turns look at."""

    def __init__(self, name: str, device: Device, in_flight: InFlight, *, devices: str = "cpu") -> None:
        self.config = SimpleNamespace(id=name, settings=SimpleNamespace(start_timeout_s=5.0))
        self.device = device
        self.devices = (devices,)
        self.endpoint = self
        self.takes_turns = True
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.turns_given = 0
        self.stayed_at = 0.0
        self.is_pinned = self.is_queued = False
        self.leases = 0
        self.was_used = False
        self.error: EngineStartError | None = None
        self.in_flight = in_flight

    @property
    def is_used(self) -> bool:
        return any(each.model == self.config.id and not each.is_waiting for each in self.in_flight)

    def is_up(self) -> bool:
        return self in self.device.loaded and self.device.loaded[self] <= time.time()

    async def status(self, *, processes: bool) -> EngineInfo:
        assert not processes
        is_loaded = self in self.device.loaded
        return EngineInfo(
            state=EngineState.READY if self.is_up() else EngineState.STOPPED,
            state_since=self.device.loaded[self] if is_loaded else None,
            devices=self.devices,
            pinned=self.is_pinned,
            progress=Progress(StartPhase.QUEUED) if self.is_queued else None,
        )

    async def make_ready(self) -> None:
        if self.error is not None:
            raise self.error
        await self.device.load(self)


class Way(Route):
    """Leases a model, as a local endpoint does: it is loaded for that, whoever's turn it is."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def acquire(self, headers: Any = ()) -> Any:
        await self.model.device.load(self.model)
        self.model.leases += 1
        self.model.was_used = True
        return SimpleNamespace(client=SimpleNamespace(socket_path=None))

    def release(self, connection: Any) -> None:
        self.model.leases -= 1

    async def explain(self, error: Any, connection: Any) -> Any:
        raise NotImplementedError


class World:
    """Models on devices, and who asks them."""

    def __init__(self, turn_s: float) -> None:
        self.models: list[Model] = []
        self.in_flight = InFlight()
        self.turns = Turns(lambda: self.models, lambda: turn_s)  # type: ignore[arg-type, return-value]
        self.waits: dict[str, list[float]] = {}

    def model(self, name: str, device: Device, **fields: Any) -> Model:
        self.models.append(Model(name, device, self.in_flight, **fields))
        return self.models[-1]

    async def ask(self, model: Model, seconds: float = 0.005) -> None:
        """One request."""
        request, began = InFlightRequest(model.config.id, "/"), time.monotonic()
        route = RouteInTurn(Way(model), self.turns, model, request)  # type: ignore[arg-type]
        with self.in_flight.listed(request):
            connection = await route.acquire()
            try:
                self.waits.setdefault(model.config.id, []).append(time.monotonic() - began)
                await asyncio.sleep(seconds)
            finally:
                route.release(connection)

    async def served(self, name: str, more: int) -> None:
        before = len(self.waits[name])
        await until(lambda: len(self.waits[name]) > before + more)

    @asynccontextmanager
    async def busy(self, *models: Model) -> AsyncIterator[None]:
        """Meanwhile four clients of each model ask it without end: it is never idle."""

        async def client(model: Model) -> None:
            while True:
                await self.ask(model)

        tasks = [asyncio.create_task(client(model)) for model in models for _ in range(4)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.002)


async def gave(model: Model, turns: int) -> None:
    await until(lambda: model.turns_given == turns)


@pytest.mark.parametrize("queues", [True, False])
async def test_a_busy_model_gives_way_and_comes_back(queues: bool) -> None:
    world, device = World(turn_s=0.05), Device(queues=queues)
    busy, other = world.model("busy", device), world.model("other", device)
    async with world.busy(busy):
        await until(lambda: len(world.waits.get("busy", ())) > 8)
        await asyncio.wait_for(world.ask(other), 1)
        assert busy.turns_given == 1
        served = len(world.waits["busy"])
        await until(lambda: len(world.waits["busy"]) > served + 8)
    assert device.loads[:3] == ["busy", "other", "busy"]
    assert all(model.is_open.is_set() for model in world.models)


@pytest.mark.slow
@pytest.mark.parametrize("queues", [True, False])
async def test_busy_models_are_loaded_one_after_the_other_and_none_waits_for_more_than_the_others_turns(
    queues: bool,
) -> None:
    turn_s = 0.02
    world, device = World(turn_s), Device(queues=queues)
    models = [world.model(name, device) for name in "abc"]
    async with world.busy(*models):
        await until(lambda: len(device.loads) >= 6)
    rounds = [device.loads[:3], device.loads[3:6]]
    assert rounds == [rounds[0]] * 2
    assert sorted(rounds[0]) == ["a", "b", "c"]
    longest = max(max(waits) for waits in world.waits.values())
    assert longest < 2 * (turn_s + LOAD_S + 0.005) + LOAD_S + 0.3


@pytest.mark.slow
async def test_a_model_stays_for_its_turn_once_it_is_loaded() -> None:
    world, device = World(turn_s=0.3), Device()
    busy, other = world.model("busy", device), world.model("other", device)
    async with world.busy(busy):
        await until(busy.is_up)
        began = time.monotonic()
        await world.ask(other)
        assert time.monotonic() - began > 0.25


async def test_where_there_is_room_nobody_waits() -> None:
    world, device, elsewhere = World(turn_s=0), Device(room=2), Device()
    models = [world.model("a", device), world.model("b", device), world.model("c", elsewhere, devices="cuda:0")]
    async with world.busy(*models):
        await until(lambda: all(len(world.waits.get(name, ())) > 20 for name in "abc"))
    assert [model.turns_given for model in models] == [0, 0, 0]
    assert sorted(device.loads) == ["a", "b"]


async def test_an_idle_model_makes_room_without_a_turn() -> None:
    world, device = World(turn_s=60), Device()
    idle, other = world.model("idle", device), world.model("other", device)
    await world.ask(idle)
    await asyncio.wait_for(world.ask(other), 1)
    assert idle.turns_given == 0


@pytest.mark.parametrize("queues", [True, False])
async def test_a_pinned_model_does_not_give_way(queues: bool) -> None:
    world, device = World(turn_s=0), Device(queues=queues)
    pinned, other = world.model("pinned", device), world.model("other", device)
    pinned.is_pinned = True
    other.config.settings.start_timeout_s = 0.1
    async with world.busy(pinned):
        await until(pinned.is_up)
        with pytest.raises(EngineStartTimeoutError if queues else EngineStartError, match=r"busy|no memory"):
            await world.ask(other)
        assert pinned.turns_given == 0
        pinned.is_pinned = False
        await asyncio.wait_for(world.ask(other), 1)


async def test_a_model_that_another_program_uses_keeps_its_turn_and_the_next_one_leaves() -> None:
    world, device = World(turn_s=0.02), Device(room=2)
    held, free, other = (world.model(name, device) for name in ("held", "free", "other"))
    async with world.busy(held, free):
        held.leases += 1  # which the gateway does not see
        await until(lambda: held.is_up() and free.is_up())
        device.loaded[held] -= 1  # it was the first
        await asyncio.wait_for(world.ask(other), 1)
        assert held.turns_given >= 1
        assert free.turns_given >= 1
        await world.served("held", 8)
        await until(lambda: "free" in device.loads[3:])
    assert device.loads.count("held") == 1


@pytest.mark.slow
async def test_a_model_that_can_not_leave_is_asked_for_a_turn_at_a_time() -> None:
    world, device = World(turn_s=0.2), Device()
    held, other = world.model("held", device), world.model("other", device)
    async with world.busy(held):
        held.leases += 1
        await until(held.is_up)
        waiting = asyncio.create_task(world.ask(other))
        for turns in (1, 2):
            await gave(held, turns)
            await until(held.is_open.is_set)
            await world.served("held", 8)
        held.leases -= 1
        await asyncio.wait_for(waiting, 2)


@pytest.mark.slow
async def test_a_model_that_is_pinned_when_it_was_to_leave_stays_and_the_next_one_leaves() -> None:
    world, device = World(turn_s=0), Device(room=2)
    pinned, free, other = (world.model(name, device) for name in ("pinned", "free", "other"))
    long = asyncio.create_task(world.ask(pinned, 1.0))
    await until(lambda: pinned.leases == 1)
    async with world.busy(free):
        await until(free.is_up)
        waiting = asyncio.create_task(world.ask(other))
        await until(lambda: not pinned.is_open.is_set())
        pinned.is_pinned = True
        await asyncio.wait_for(waiting, 0.5)
        assert pinned.is_open.is_set()
        assert not long.done()
    await long


@pytest.mark.slow
async def test_a_model_that_has_only_just_answered_its_last_request_has_time_to_leave(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LEAVE_S", 0.3)
    caplog.set_level("INFO")
    world, device = World(turn_s=0), Device(queues=False)
    slow, other = world.model("slow", device), world.model("other", device)
    long = asyncio.create_task(world.ask(slow, 0.5))
    await until(lambda: slow.leases == 1)
    waiting = asyncio.create_task(world.ask(other))
    await until(lambda: not slow.is_open.is_set())
    device.queues = True
    slow.leases += 1  # the engine takes a moment to be idle
    await long
    await until(lambda: other.is_queued)
    await asyncio.sleep(0.05)
    assert "slow gets new requests again" not in caplog.text
    await until(lambda: "slow gets new requests again: it did not leave within 0.3 s" in caplog.text)
    slow.leases -= 1
    await asyncio.wait_for(waiting, 1)


@pytest.mark.slow
async def test_a_load_for_which_no_room_is_made_in_time_holds_nobody_longer() -> None:
    world, device = World(turn_s=0), Device(queues=False)
    slow, other = world.model("slow", device), world.model("other", device)
    other.config.settings.start_timeout_s = 0.1
    long = asyncio.create_task(world.ask(slow, 1.0))
    await until(lambda: slow.leases == 1)
    with pytest.raises((EngineStartError, EngineStartTimeoutError)):
        await world.ask(other)
    await until(slow.is_open.is_set)
    assert not long.done()
    await long


async def test_all_who_wait_get_the_error_of_a_load_that_failed_and_the_next_one_tries_again() -> None:
    world, device = World(turn_s=0), Device()
    broken, fine = world.model("broken", device), world.model("fine", device)
    broken.error = EngineStartError("no such model")
    async with world.busy(fine):
        await until(fine.is_up)
        results = await asyncio.gather(*(world.ask(broken) for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in results] == ["no such model"] * 3
        assert fine.is_open.is_set()
        broken.error = None
        await asyncio.wait_for(world.ask(broken), 1)


async def test_who_leaves_ends_its_waiting_and_not_the_load() -> None:
    world, device = World(turn_s=0.05), Device()
    busy, other = world.model("busy", device), world.model("other", device)
    async with world.busy(busy):
        await until(busy.is_up)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(world.ask(other), 0.02)
        await until(lambda: "other" in device.loads)
        await until(lambda: device.loads[-1] == "busy")
    assert busy.is_open.is_set()


@pytest.mark.parametrize("queues", [True, False])
async def test_a_request_whose_model_has_left_just_then_waits_for_its_turn(queues: bool) -> None:
    """It took the model for loaded; its own load would wait behind others for as long as they are busy, or fail."""
    world, device = World(turn_s=0.05), Device(queues=queues)
    late, busy = world.model("late", device), world.model("busy", device)
    async with world.busy(busy):
        await until(busy.is_up)
        seen = iter([True])
        up = late.is_up
        late.is_up = lambda: next(seen, None) or up()  # type: ignore[method-assign]
        await asyncio.wait_for(world.ask(late), 1)
    assert busy.turns_given == 1


@pytest.mark.slow
async def test_requests_in_flight_are_not_cut_short_by_a_turn() -> None:
    world, device = World(turn_s=0), Device()
    slow, other = world.model("slow", device), world.model("other", device)
    long = asyncio.create_task(world.ask(slow, 0.3))
    await until(lambda: slow.leases == 1)
    began = time.monotonic()
    await world.ask(other)
    assert time.monotonic() - began > 0.2
    await long
