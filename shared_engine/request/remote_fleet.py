"""A fleet of servers that are not ours, at URLs."""

from __future__ import annotations

import asyncio
from typing import Any

from shared_engine.errors import EngineError, RequestError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.request.endpoint import Connection
from shared_engine.request.fleet import Fleet, fleet_of
from shared_engine.request.fleet_endpoint import FleetEndpoint, none_serves
from shared_engine.request.remote import RemoteEndpoint
from shared_engine.request.tally import EngineName
from shared_engine.runtime.record import EngineState
from shared_engine.settings import EngineSettings


class RemoteFleet(FleetEndpoint):
    """Several servers, by their URLs."""

    awaited = "a server of the fleet"

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self.fleet: Fleet = fleet_of(settings)
        self._of_members = {str(each.base_url): each for each in settings.members()}
        self._endpoints: dict[str, tuple[EngineSettings | None, RemoteEndpoint]] = {}

    @property
    def members(self) -> Fleet:
        return self.fleet

    @property
    def name(self) -> EngineName:
        urls = self.settings.base_url
        return EngineName(self.settings.model or "", ",".join(urls) if isinstance(urls, tuple) else str(urls))

    def endpoint_of(self, name: str) -> RemoteEndpoint:
        """One that came later is reached as the first one is, with the key that it came with last."""
        came_with = self.fleet.came_later.get(name)
        known = self._endpoints.get(name)
        if known is None or known[0] is not came_with:
            known = self._endpoints[name] = (came_with, RemoteEndpoint(self._settings_of(name, came_with)))
        return known[1]

    def _settings_of(self, name: str, came_with: EngineSettings | None) -> EngineSettings:
        own = self._of_members.get(name)
        if own is not None and came_with is None:
            return own
        update: dict[str, Any] = {"base_url": name, "member_weights": None}
        if came_with is not None:
            update |= {"api_key": came_with.api_key, "basic_auth": came_with.basic_auth}
        return (own or self.settings).model_copy(update=update)

    async def refresh(self) -> None:
        await self.fleet.refresh()

    async def wait_for_one(self, model: str, said: dict[str, str]) -> None:  # noqa: ARG002
        members = self.fleet.pool.members.values()
        if not members:
            raise RequestError("the fleet has no server left: add one")
        if all(member.is_draining for member in members):
            raise RequestError("all servers of the fleet are being drained: add one")
        raise none_serves(self.fleet.pool, model)

    async def load_adapter(self, name: str, path: str, connection: Connection) -> None:  # noqa: ARG002
        """On all servers."""

        async def load(endpoint: RemoteEndpoint) -> None:
            await endpoint.load_adapter(name, path, await endpoint.acquire())

        await asyncio.gather(*(load(self.endpoint_of(url)) for url in list(self.fleet.pool.members)))

    async def status(self, *, processes: bool) -> EngineInfo:
        infos = await self.member_infos(processes=processes)
        ready = [info for info in infos if info.state is EngineState.READY]
        said = [f"{info.base_url}: {info.last_error}" for info in infos if info.last_error]
        return EngineInfo(
            state=EngineState.READY if ready else EngineState.FAILED,
            mode="remote",
            model=self.settings.model or next((info.model for info in ready), None),
            base_url=", ".join(str(info.base_url) for info in infos),
            last_error="; ".join(said) or None,
            max_model_len=self.max_model_len,
            members=tuple(infos),
        )

    async def evict(self, timeout: float) -> None:  # noqa: ARG002
        raise EngineError("these servers are remote: vllm-local never stops a remote server")

    async def shutdown(self, timeout: float, *, force: bool) -> None:  # noqa: ARG002
        await self.evict(timeout)

    async def close(self) -> None:
        for _, endpoint in self._endpoints.values():
            await endpoint.close()
