"""EngineSettings -> the keep policy that is sent to the supervisor."""

from __future__ import annotations

from pydantic import SecretStr

from shared_engine.addresses import host_and_port
from shared_engine.declared import Decides
from shared_engine.runtime.keep_policy import KeepPolicy, TcpAddress
from shared_engine.settings import SETTINGS, EngineSettings


def keep_policy(settings: EngineSettings) -> KeepPolicy:
    """The settings that decide this (``Decides.KEEPING``), under the same names. Where one is None, its default
    says so in numbers.
    """
    others = ("standby", "serve_tcp")
    names = [name for name, setting in SETTINGS.items() if setting.decides is Decides.KEEPING and name not in others]
    values = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if isinstance(settings.serve_tcp, str):
        host, port = host_and_port(settings.serve_tcp)
        key = settings.api_key.get_secret_value() if isinstance(settings.api_key, SecretStr) else ""
        values["serve_tcp"] = TcpAddress(host, port, key)
    if not settings.standby:
        values["standby_ttl_s"] = 0.0
    return KeepPolicy(**values)
