"""Which endpoint the settings ask for."""

from __future__ import annotations

from shared_engine.request.endpoint import Endpoint
from shared_engine.request.local import LocalEndpoint
from shared_engine.request.remote import RemoteEndpoint
from shared_engine.settings import EngineSettings


def endpoint_of(settings: EngineSettings) -> Endpoint:
    """Constructing one reads no file and opens nothing."""
    if settings.is_remote:
        return RemoteEndpoint(settings)
    if settings.mode == "direct":
        from shared_engine.request.direct import DirectEndpoint  # late: few apps have a use for it

        return DirectEndpoint(settings)
    return LocalEndpoint(settings)
