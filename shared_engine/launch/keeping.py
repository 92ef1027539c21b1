"""EngineSettings -> the keep policy that is sent to the supervisor."""

from __future__ import annotations

from shared_engine.declared import Decides
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.settings import SETTINGS, EngineSettings


def keep_policy(settings: EngineSettings) -> KeepPolicy:
    """The settings that decide this (``Decides.KEEPING``), under the same names. Where one is None, its default
    says so in numbers.
    """
    names = [name for name, setting in SETTINGS.items() if setting.decides is Decides.KEEPING and name != "standby"]
    values = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if not settings.standby:
        values["standby_ttl_s"] = 0.0
    return KeepPolicy(**values)
