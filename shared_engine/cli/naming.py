"""Which engines a command means by the names it was given."""

from __future__ import annotations

from collections.abc import Sequence

from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import choose

ENGINE_HELP = "an engine: the first 4 or more digits of its key, its model, or its model's last component"


def named(engines: Sequence[EngineInfo], names: Sequence[str]) -> list[EngineInfo]:
    """The engines of these names, none of them twice."""
    return list({engine.key: engine for engine in (choose(engines, name) for name in names)}.values())
