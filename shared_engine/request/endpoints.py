"""Which endpoint the settings ask for."""

from __future__ import annotations

from shared_engine.request.endpoint import Endpoint
from shared_engine.request.local import LocalEndpoint
from shared_engine.request.remote import RemoteEndpoint
from shared_engine.request.remote_fleet import RemoteFleet
from shared_engine.request.replica_endpoint import ReplicaEndpoint
from shared_engine.settings import EngineSettings


def endpoint_of(settings: EngineSettings) -> Endpoint:
    """Constructing one reads no file and opens nothing."""
    if len(settings.modes) == 1:
        return _of_mode(settings.modes[0], settings)
    from shared_engine.request.fallback import FallbackEndpoint, place_of

    return FallbackEndpoint(settings.modes, lambda mode: _of_mode(mode, settings), place_of(settings))


def _of_mode(mode: str, settings: EngineSettings) -> Endpoint:
    if mode == "remote":
        if settings.is_fleet:
            return RemoteFleet(settings)
        return RemoteEndpoint(settings)
    if mode == "direct":
        from shared_engine.request.direct import DirectEndpoint  # late: few apps have a use for it

        return DirectEndpoint(settings)
    return ReplicaEndpoint(settings) if settings.is_replicated else LocalEndpoint(settings)
