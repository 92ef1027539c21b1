"""Loaded models as a table for people: what ``vllm-local ps`` shows. It prints nothing itself."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from shared_engine.cli.table import duration, size, table
from shared_engine.observe.activity import Activity
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.runtime.record import EngineState

HEAD = ("NAME", "KEY", "SIZE", "DEVICE", "CONTEXT", "DOES", "UNTIL")


def ps_table(
    engines: Sequence[EngineInfo], activities: Mapping[str, Activity | None], memory: Mapping[str, int]
) -> list[str]:
    """A head, and a line for each engine.

    Args:
        activities: of those in use, by key.
        memory: bytes of all memory of each device.
    """
    rows = [HEAD]
    for engine in engines:
        held = engine.gpu_memory_bytes if engine.gpu_memory_bytes is not None else engine.memory_bytes
        rows.append(
            (
                engine.name,
                engine.short_key,
                size(held),
                device_share(engine.devices, held, memory),
                "-" if engine.max_model_len is None else str(engine.max_model_len),
                doing(engine, activities.get(engine.key or "")),
                until(engine),
            )
        )
    return table(rows, numbers=(2, 4), least=((0, 20), (5, 12)))


def device_share(devices: Sequence[str], held: int | None, memory: Mapping[str, int]) -> str:
    """``cpu 12%``, ``cuda:0 45%``, ``cuda:0,1 45%``: of all memory of these devices, where that is known."""
    if not devices:
        return "-"
    first, *others = devices
    name = ",".join([first, *(each.removeprefix("cuda:") for each in others)])
    total = sum(memory.get(device, 0) for device in devices)
    return name if held is None or not total else f"{name} {math.ceil(100 * held / total)}%"


def doing(engine: EngineInfo, activity: Activity | None) -> str:
    if engine.state is not EngineState.READY:
        return f"{engine.state.value}: {engine.progress}" if engine.progress else str(engine.state.value)
    if activity is not None and activity != (0, 0):
        return f"{activity.running} running" + (f", {activity.waiting} waiting" if activity.waiting else "")
    return "busy" if engine.leases else "idle"


def until(engine: EngineInfo) -> str:
    """When the model leaves memory if nobody uses it: ``in 24m``; what else ends its stay."""
    if engine.state not in (EngineState.READY, EngineState.ASLEEP) or engine.idle_ttl_s is None:
        return "-"
    if engine.idle_ttl_s == math.inf:
        return "unloaded by hand (pinned)" if engine.pinned else "memory is short"
    if engine.leaves_at is None:
        text = f"{duration(engine.idle_ttl_s)} after use"
    else:
        text = f"in {duration(engine.leaves_at - time.time())}"
    return f"{text} (pinned)" if engine.pinned else text
